"""The encoding of a text file, found without being told: every strict decoding that works is judged by its characters."""
from __future__ import annotations

import codecs
import unicodedata
from functools import lru_cache

BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
                    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
CANDIDATES = ("gb18030", "cp950", "big5hkscs", "cp1252", "utf-16-le", "utf-16-be")
SAMPLE = 4000
LEAST_PLAUSIBLE = -1.0

# the characters that captions and everyday Chinese use most, in both scripts
FREQUENT_HANZI = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定天分还"
    "进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产"
    "或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受"
    "目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张"
    "该交规万取拉格望觉术领共确传师观清今切院让识候带导争运笔画照片像图男孩女孩猫狗花草树木红黄蓝绿黑白灰紫粉橙色头发眼睛穿着衣裙裤鞋帽戴笑脸坐站跑走看拿背景蓝天云雨雪"
    "风格景夜晚春夏秋冬房屋街道桌椅窗户杯瓶车船飞机鸟鱼虎龙兔熊羊牛鸡鸭肖像近景远景特写细节质量杰作动漫写实油画水彩素描摄影温柔美丽漂亮可爱年轻长短卷直双单手臂腿脚嘴唇鼻耳阳光灯影森林湖河"
    "這個們來為國說時會對於著過發後裡種經麼學現當沒動還進樣開從實軍無與長機關點業將兩間問並應戰頭體見產話內給門兒東聲員論處義幾認條氣題爾別變總電數報結務場計題領"
    "確傳師觀讓識候帶導爭運筆畫圖貓狗樹紅黃藍綠髮衣裙褲鞋臉雲風車飛鳥魚龍雞鴨遠細節質動漫寫實攝溫麗漂亮愛輕雙單陽燈湖戶張該規萬權覺術設記類據邊聽達區隊決馬書強難線裏"
    "，。、；：？！（）“”‘’「」《》…—")
LATIN_SMALL = frozenset("àâäáãåæçéèêëíìîïñóòôöõøœúùûüýÿßšž")
LATIN_LARGE = frozenset("ÀÂÄÁÃÅÆÇÉÈÊËÍÌÎÏÑÓÒÔÖÕØŒÚÙÛÜÝŠŽ")
LATIN_MARKS = frozenset("’‘“”«»–—…€°§·¿¡²³½\u00a0")


def decode_text(data: bytes) -> str:
    """The text in `data`: UTF-8, UTF-16 (both with or without byte order mark), GB18030, Big5 or cp1252.

    Raises ValueError when it is text in none of them.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            text = _strict(data[len(mark):], encoding)
            if text is None:
                raise ValueError(f"the text is marked as {encoding.upper()} but is not; save it as UTF-8.")
            return text
    text = _strict(data, "utf-8")
    if text is not None and "\0" not in text:
        return text
    best_score, best = LEAST_PLAUSIBLE, None
    for encoding in CANDIDATES:
        text = _strict(data, encoding)
        if text is not None and (score := _plausibility(text, encoding)) > best_score:
            best_score, best = score, text
    if best is None:
        raise ValueError("the text is in none of UTF-8, UTF-16, GB18030, Big5 and cp1252; save it as UTF-8.")
    return best


def _strict(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _plausibility(text: str, encoding: str) -> float:
    """Mean score of the characters that are not plain ASCII: about 2 for real text, below 0 for a wrong decoding.

    In UTF-16 plain ASCII counts too, because only there it is a choice of the encoding.
    """
    judge = _latin_score if encoding == "cp1252" else _wide_score
    plain_counts = encoding.startswith("utf-16")
    scores = []
    for index, char in enumerate(text):
        if " " <= char <= "~" or char in "\t\r\n":
            if plain_counts:
                scores.append(2.0)
            continue
        before, after = text[index - 1] if index else " ", text[index + 1] if index + 1 < len(text) else " "
        scores.append(judge(char, before, after))
        if len(scores) == SAMPLE:
            break
    return sum(scores) / len(scores) if scores else 3.0


def _wide_score(char: str, before: str, after: str) -> float:
    # one lone character inside a Latin word is an accent that was decoded wrongly
    lone = 3.0 if "\u2e80" <= char and _is_ascii_letter(before) and _is_ascii_letter(after) else 0.0
    return _rarity_score(char) - lone


def _latin_score(char: str, before: str, after: str) -> float:
    if char in LATIN_SMALL:
        return 2.0 if not (before in LATIN_LARGE or after in LATIN_LARGE) else -1.0
    if char in LATIN_LARGE:
        return 1.0 if not before.isalpha() and _is_ascii_letter(after) or before.isupper() and before.isascii() else -1.5
    if char in LATIN_MARKS:
        return 1.0 if before.isascii() and after.isascii() else -1.0
    return -8.0 if unicodedata.category(char) == "Cc" else -2.0


@lru_cache(maxsize=20000)
def _rarity_score(char: str) -> float:
    if char in FREQUENT_HANZI:
        return 3.0
    category = unicodedata.category(char)
    if category in ("Co", "Cn", "Cs", "Cc"):
        return -8.0
    if category.startswith("L") and "\u4e00" <= char <= "\u9fff":
        return _hanzi_score(char)
    if "\u3000" <= char <= "\u303f" or "\uff00" <= char <= "\uff5e":
        return 1.0
    if char in LATIN_MARKS or char in LATIN_SMALL:
        return 0.5
    return -1.5


def _hanzi_score(char: str) -> float:
    """By the level that the character has in the two national standards, which order by use."""
    simplified = _lead_byte(char, "gb2312")
    traditional = _lead_byte(char, "big5")
    if 0xB0 <= simplified <= 0xD7:
        return 1.0
    if 0xA4 <= traditional <= 0xC6:
        return 0.4
    return -0.5 if simplified or traditional else -2.5


def _lead_byte(char: str, encoding: str) -> int:
    try:
        return char.encode(encoding)[0]
    except UnicodeEncodeError:
        return 0


def _is_ascii_letter(char: str) -> bool:
    return char.isascii() and char.isalpha()

"""The sentences of the check in English and Chinese, by the code of what was found: what it is, why it matters, what to do."""
from __future__ import annotations

from typing import Any

from .finding import Finding

LANGUAGES = ("en", "zh")
Sentences = tuple[str, str, str]

TEXTS: dict[str, dict[str, Sentences]] = {
    "uniform": {
        "en": ("{n} almost of one colour", "there is nothing in them to learn", "leave them out"),
        "zh": ("{n}几乎只有一种颜色", "其中没有可学的内容", "将其排除")},
    "broken": {
        "en": ("{n} whose lower part is missing ({percent} % are grey)", "the grey area would be learned too", "download or copy them again, or leave them out"),
        "zh": ("{n}下半部分缺失（{percent}% 为灰色）", "灰色区域也会被学进去", "重新下载或复制，或将其排除")},
    "blurred": {
        "en": ("{n} out of focus (edges up to {width} pixels wide)", "the LoRA learns the blur and draws soft pictures", "use sharper ones, or leave them out"),
        "zh": ("{n}失焦（边缘宽度达 {width} 像素）", "LoRA 会学到模糊，画出的图也会发虚", "换成更清晰的图，或将其排除")},
    "moved": {
        "en": ("{n} blurred by motion", "smeared edges are learned as part of the subject", "use sharper ones, or leave them out"),
        "zh": ("{n}有运动模糊", "拖影会被当作主体的一部分学进去", "换成更清晰的图，或将其排除")},
    "noisy": {
        "en": ("{n} with strong noise (about {level} of 255 levels)", "noise is easy to learn and shows in every picture drawn later",
               "remove the noise, or leave them out"),
        "zh": ("{n}噪点很重（约 {level}/255 级）", "噪点很容易被学到，之后每张图都会出现", "先降噪，或将其排除")},
    "blocky": {
        "en": ("{n} damaged by strong JPEG compression", "the blocks of 8x8 pixels are learned as texture", "find the originals, or leave them out"),
        "zh": ("{n}因 JPEG 压缩过度而受损", "8x8 的方块会被当作纹理学进去", "找原图替换，或将其排除")},
    "small": {
        "en": ("{n} smaller than the training size (the smallest is {width}x{height}, training is at {resolution})",
               "they are trained at their own size and add little detail", "find larger ones, lower resolution, or leave them out"),
        "zh": ("{n}小于训练尺寸（最小 {width}x{height}，训练为 {resolution}）", "只能按自身尺寸训练，细节很少", "换更大的图、降低 resolution，或将其排除")},
    "enlarged": {
        "en": ("{n} enlarged from a smaller one or soft all over ({width}x{height} with the detail of about {real_width}x{real_height})",
               "missing detail is learned as a soft look", "find the originals, or leave them out"),
        "zh": ("{n}由小图放大或整体偏软（{width}x{height} 只有约 {real_width}x{real_height} 的细节）", "缺失的细节会被学成柔焦效果", "找原图替换，或将其排除")},
    "extreme": {
        "en": ("{n} of an extreme shape (up to {ratio}:1; up to {percent} % are cut off)", "much of them is cut off, and long strips are rare in the base",
               "cut them to what matters, or leave them out"),
        "zh": ("{n}长宽比过于极端（最大 {ratio}:1，最多裁掉 {percent}%）", "大部分会被裁掉，底模也很少见过长条图", "裁成重点部分，或将其排除")},
    "bars": {
        "en": ("{n} with bars of one colour at two sides (up to {percent} % of the picture)", "the LoRA learns to draw the bars", "cut the bars off, or leave them out"),
        "zh": ("{n}两侧有纯色边条（最多占 {percent}%）", "LoRA 会学会画边条", "裁掉边条，或将其排除")},
    "strip": {
        "en": ("{n} with a strip of one colour at one side ({percent} %)", "text and logos in such strips are learned", "cut the strip off if it does not belong to the picture"),
        "zh": ("{n}一侧有纯色条（{percent}%）", "条中的文字和标志会被学进去", "若不属于画面，请裁掉")},
    "too_few": {
        "en": ("{count} different pictures; at least {fewest} are wanted", "a few pictures are learned by heart instead of what they have in common", "add more pictures"),
        "zh": ("只有 {count} 张不同的图，至少需要 {fewest} 张", "图太少会死记硬背，学不到共同点", "增加图片")},
    "too_many": {
        "en": ("{count} different pictures, more than the {most} that this purpose needs", "weak pictures among many go unnoticed, and training takes longer",
               "keep the best ones, unless all are good"),
        "zh": ("有 {count} 张不同的图，超过此用途所需的 {most} 张", "图太多时差图难以发现，训练也更久", "除非都很好，否则只留最好的")},
    "same_file": {
        "en": ("{copies} of a file that is there already", "a picture that is there twice counts double and is learned by heart", "leave the copies out"),
        "zh": ("{extra} 张完全相同的副本", "重复的图权重加倍，容易被死记", "排除副本")},
    "near_copy": {
        "en": ("{copies} of another picture, resized, mirrored, cut or saved again", "a picture that is there twice counts double and is learned by heart",
               "leave all but the best of each group out"),
        "zh": ("{extra} 张近似副本（缩放、镜像、裁切或重存）", "重复的图权重加倍，容易被死记", "每组只留最好的一张")},
    "same_background": {
        "en": ("{count} of {total} pictures have the same background", "the background becomes part of what is learned", "add pictures in other places, or name the background in the captions"),
        "zh": ("{total} 张中有 {count} 张背景相同", "背景会成为所学内容的一部分", "增加其他场景的图，或在描述中写明背景")},
    "same_framing": {
        "en": ("{count} of {total} pictures are framed the same way", "the LoRA draws this framing only", "add close and wide views, and other sides"),
        "zh": ("{total} 张中有 {count} 张构图相同", "LoRA 只会画这一种构图", "增加特写、远景和其他角度")},
    "overlay": {
        "en": ("the same lines lie over nearly all pictures, near the {place} edge", "a watermark, logo or date is the first thing that a LoRA learns", "cut it off"),
        "zh": ("几乎所有图的{place}侧都有相同的线条", "水印、标志或日期会最先被学进去", "将其裁掉")},
    "no_caption": {
        "en": ("{n} without a caption", "what a caption does not name becomes part of the trigger word", "make captions, or write them"),
        "zh": ("{n}没有描述", "描述没写的内容都会并入触发词", "自动生成或手写描述")},
    "no_trigger": {
        "en": ("no trigger word is set", "without one nothing calls up what was learned", "set trigger to a word that has no meaning yet, such as sks"),
        "zh": ("没有设置触发词", "没有触发词就无法唤出所学内容", "把 trigger 设为一个无意义的词，如 sks")},
    "trigger_missing": {
        "en": ("{n} whose caption lacks the trigger word {trigger}", "training puts it first by itself", "nothing has to be done; it can be written into the captions"),
        "zh": ("{n}的描述缺少触发词 {trigger}", "训练时会自动加在最前", "无需处理，也可以写进描述")},
    "praise_only": {
        "en": ("{n} whose caption is praise only (\"{example}\")", "such words describe nothing and are not needed to draw", "say what is to be seen"),
        "zh": ("{n}的描述只有赞美词（“{example}”）", "这些词没有描述任何内容", "写出画面里有什么")},
    "short_caption": {
        "en": ("{n} whose caption has fewer than 3 words (\"{example}\")", "place, pose and light become part of what is learned", "name what should stay changeable"),
        "zh": ("{n}的描述不足 3 个词（“{example}”）", "地点、姿势和光线会并入所学内容", "写出希望保持可变的内容")},
    "same_caption": {
        "en": ("{n} share a caption (\"{example}\")", "what differs between the pictures is named nowhere", "describe each picture by what is special about it"),
        "zh": ("{n}使用同一描述（“{example}”）", "图片之间的差别没有写出来", "分别写出每张图的特点")},
    "too_long": {
        "en": ("{n} whose caption is longer than {limit} tokens (up to {tokens}); it is cut after \"... {end}\"", "the text encoder does not read the rest",
               "put what matters first, or shorten it"),
        "zh": ("{n}的描述超过 {limit} 个 token（最多 {tokens}），在“… {end}”之后被截断", "文本编码器读不到后面的内容", "把重点放在前面，或缩短")},
    "wrong_caption": {
        "en": ("{n} whose caption fits other pictures better (\"{example}\")", "a wrong caption teaches the wrong thing", "look at them, and correct the caption"),
        "zh": ("{n}的描述更像是别的图的（“{example}”）", "错误的描述会教错内容", "检查并改正描述")},
}
PLACES = {"top": "上", "bottom": "下", "left": "左", "right": "右"}
PART_NAMES = {"amount": ("number of pictures", "图片数量"), "quality": ("quality of the pictures", "图片质量"), "duplicates": ("no copies", "无重复"),
              "variety": ("variety", "多样性"), "captions": ("captions", "描述")}
SEVERITIES = {"fix": ("fix this first", "请先处理"), "look": ("look at this", "建议查看"), "note": ("note", "提示")}
ACTIONS = {"leave_out": ("leave out", "排除"), "add_trigger": ("add the trigger word", "加上触发词"), "make_captions": ("make captions", "生成描述")}
VERDICTS = {"good": ("would train as is", "可以直接训练"), "fix": ("fix these first: {what}", "请先处理：{what}")}


def sentences(finding: Finding, language: str) -> dict[str, str]:
    """`what`, `why` and `do` of a finding as whole sentences without a full stop; `mark` is what is said on a picture itself."""
    values: dict[str, Any] = dict(finding.values)
    count = len(finding.files)
    values["n"] = (f"{count} picture" + ("" if count == 1 else "s")) if language == "en" else f"{count} 张图"
    if "extra" in values:
        values["copies"] = "1 copy" if values["extra"] == 1 else f"{values['extra']} copies"
    if language == "zh" and "place" in values:
        values["place"] = PLACES[values["place"]]
    what, why, advice = (text.format_map(values) for text in TEXTS[finding.code][language])
    return {"what": what, "why": why, "do": advice, "mark": TEXTS[finding.code][language][0].format_map({**values, "n": ""}).strip()}

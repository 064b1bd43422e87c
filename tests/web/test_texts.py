"""The texts: the same keys in both languages, every text that the code uses, and Chinese for every setting of the server."""
import re
from pathlib import Path

import pytest

from hotlora.trainer.caption_choices import PURPOSES
from hotlora.trainer.config import SETTINGS
from hotlora.trainer.job_settings import CODE, DECIDED
from hotlora.trainer.job_store import STATUSES
from hotlora.trainer.names import check_name
from hotlora.trainer.presets import PRESETS

from .conftest import until

WEB = Path(__file__).resolve().parent.parent.parent / "web"
FAMILIES = {
    "status": STATUSES,
    "ended": ("completed", "stopped", "unlearned", "failed", "interrupted", "cancelled"),
    "preset": [key for preset in PRESETS for key in (preset, f"{preset}.hint")],
    "captions": ("waiting", "saving", "saved"),
    "how": [key for how in ("pair", "weights", "steps") for key in (how, f"{how}.hint")],
    "captioner": ("blip_base", "blip_large", "blip2", "coca", "clip", "wd"),
    "captioning": ("loading", "downloading", "writing", "done", "stopped"),
    "purpose": [key for purpose in PURPOSES for key in (purpose, f"{purpose}.hint")],
    "try": ("sent", "node", "copied"),
}
"""Texts whose key is put together by the code, as `status.${...}`."""


def sources():
    return {path.relative_to(WEB).as_posix(): path.read_text(encoding="utf-8")
            for path in [*WEB.glob("*.js"), *WEB.glob("views/*.js")]}


def keys_of(language: str) -> list[str]:
    text = (WEB / "text" / f"{language}.js").read_text(encoding="utf-8")
    return re.findall(r'^  "?([\w.]+)"?: ', text, re.MULTILINE)


def test_both_languages_have_the_same_texts():
    english, chinese = keys_of("en"), keys_of("zh")
    assert len(set(english)) == len(english) and len(set(chinese)) == len(chinese)
    assert english == chinese


def test_every_text_that_is_used_exists_and_every_text_is_used():
    code = "\n".join(sources().values())
    used = set(re.findall(r'\bt\(\s*"([\w.]+)"', code)) | set(re.findall(r'\? "([a-z]+\.\w+)" : "[a-z]+\.\w+"', code))
    used |= set(re.findall(r'\? "[a-z]+\.\w+" : "([a-z]+\.\w+)"', code))
    computed = set(re.findall(r"\bt\(`(\w+)\.\$", code))
    advanced = set(re.findall(r"^  (\w+): \[", sources()["views/advanced.js"], re.MULTILINE)) | {"other"}
    subjects = set(re.findall(r"^  (\w+): \(who\)", sources()["form.js"], re.MULTILINE))
    families = {**FAMILIES, "group": advanced, "subject": subjects}
    assert computed <= set(families), "a family of texts that this test does not know"
    used |= {f"{family}.{member}" for family, members in families.items() for member in members}
    known = set(keys_of("en"))
    assert used - known == set()
    assert known - used == set()


def test_no_text_stands_in_a_view():
    """Words between tags would be shown in English to everybody."""
    for name, source in sources().items():
        for words in re.findall(r">\s*([A-Za-z][a-z]+(?: [a-z]+)+)\s*<", source):
            raise AssertionError(f"{name} shows {words!r} without a text key")


def test_every_setting_has_a_chinese_name_help_and_unit():
    text = (WEB / "text" / "zh_settings.js").read_text(encoding="utf-8")
    known = set(re.findall(r"^  (\w+): \[", text, re.MULTILINE))
    elsewhere = {"train_data_dir", "name", "trigger", "base_model", *DECIDED, *CODE}
    assert {name for name in SETTINGS if name not in elsewhere} - known == set()
    units = set(re.findall(r'^  "?([\w ]+)"?: "', text, re.MULTILINE))
    assert {setting.unit for setting in SETTINGS.values() if setting.unit} - units == set()


@pytest.mark.parametrize("language, word", [("en-US", "Train a LoRA"), ("zh-CN", "训练 LoRA"), ("fr-FR", "Train a LoRA")])
def test_the_language_is_the_browser_s(shared_server, open_page, language, word):
    page = open_page(shared_server, locale=language)
    assert page.get_by_role("heading", level=1).first.inner_text() == word


def test_a_chosen_language_is_kept_and_the_form_with_it(shared_server, open_page):
    page = open_page(shared_server)
    page.get_by_label("Name", exact=True).fill("stays")
    page.get_by_label("Language").select_option("zh")
    page.get_by_role("heading", name="训练 LoRA").wait_for()
    assert page.get_by_label("名称", exact=True).input_value() == "stays"
    until(page, "document.activeElement === document.querySelector('.language select')")
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    page.reload()
    page.get_by_role("heading", name="训练 LoRA").wait_for()


def test_sentences_of_the_server_are_shown_in_chinese(shared_server, open_page, tmp_path):
    page = open_page(shared_server, locale="zh-CN")
    page.locator("input[list=hl-folders]").fill(str(tmp_path / "nowhere"))
    page.locator(".told.wrong", has_text=f"文件夹 {tmp_path / 'nowhere'} 不存在").wait_for()


SAID = """async (sentences) => {
  const address = performance.getEntriesByType("resource").map((one) => one.name).find((one) => one.endsWith("/i18n.js"));
  const { said } = await import(address);
  return sentences.map(said);
}"""
SENTENCES = [
    "IMG_1.HEIC is neither a picture (avif, bmp, gif, png) nor a caption file (.txt, .caption, metadata.csv, metadata.jsonl)",
    "it is not a picture, or damaged", "the file is truncated", "the file is empty", "it is damaged (OSError: x)", "it is not a file",
    "it cannot be opened (Permission denied)", "it does not fit into memory", "13000x13100 are 170 megapixels, max_megapixels is 100; make it smaller",
    "it has 400 megapixels, and Pillow refuses more than 179 here; make it smaller", "this Pillow cannot read avif; save it as png or jpg",
    *(f"its content is {kind}, whatever its name says, which is not read; save the picture as png or jpg" for kind in ("heic", "a video", "a web page")),
    "a.png cannot be used: it is not a picture, or damaged", "its mask a_mask.png cannot be used: the file is empty",
    "The gallery /x is a file; give the folder that holds the pictures.",
    "1 metadata row without a picture in the gallery: x.png.", "2 metadata rows without a picture in the gallery: x.png, y.png.",
    "These masks belong to no picture: x_mask.png.", "masks is on, but no picture has a *_mask.png or transparency.",
    "These masks have no white part, so that nothing of their pictures is trained: a_mask.png; paint white what is to be trained, or remove them.",
    "In the gallery /x no mask has a white part, so that nothing would be trained: a_mask.png; paint white what is to be trained, or set masks: false.",
    "1 picture in reg is left out: results of HotLoRA and prior pictures (reg_data_dir) are not trained as your own",
    "3 pictures in model, reg are left out: results of HotLoRA and prior pictures (reg_data_dir) are not trained as your own.",
    "The gallery /x has no picture to use: 3 pictures in reg are left out: results of HotLoRA and prior pictures (reg_data_dir) are not trained as your own; set "
    "train_data_dir to the folder with your pictures.",
    "failed at step 3: the loss at step 4 is not a number any more; the weights from before that step are kept. Look at learning_rate (0.1): try a tenth of "
    "it; what was learned is kept, and Resume goes on from there",
    "completed 1,500 steps; the LoRA is /x/a.safetensors", "seed is None but must be a whole number", "width is 513 but must be a multiple of 8",
    "lora_rank is '0' but must be a whole number from 1 to 1024; change it, or remove it to get the default (16)",
    "there is a LoRA x again; rename or delete that one first", "x.png is in the gallery again; rename or remove that one first",
    "a.txt is in the gallery already with another text; edit the captions there, or remove that file first",
    "a.txt is larger than a megabyte, which is no caption", "log in to this server first; HotLoRA asks for the same login",
    "v_parameterization is read from the base model: one that does not say that it is a v-prediction model is trained as one that predicts the noise (eps); --dry-run "
    "shows which it is", "network_alpha is not given: HotLoRA's default is the rank, sd-scripts' is 1", "lr_scheduler is not given: HotLoRA's default is 16, sd-scripts' is 4",
    "text_encoder_lr is not given: HotLoRA does not train the text encoder, sd-scripts would",
    "optimizer is prodigy, which needs the package prodigyopt, and that is not installed or does not load here; run `pip install prodigyopt` in the Python "
    "environment that runs HotLoRA, or use adamw", "optimizer adamw does not work with optimizer_args {'bogus': 1}: unexpected (it takes lr); change optimizer_args",
    "optimizer prodigy finds one learning rate for everything, but there are 0.5, 1.0; remove text_encoder_lr and lora_plus_ratio, or use adamw",
    "mixed_precision is fp16, which needs a CUDA or ROCm GPU, but the device is cpu; use no or bf16", "there is no file /x/a.safetensors; check the path",
    "mixed_precision is bf16, which this GPU does not have; use fp16", "/x/a.pt is a pickle, which can run any program when it is opened; convert it to .safetensors first",
    "/x/a.safetensors cannot be used as a LoRA: it is not a LoRA: 286 tensors such as conv_in.bias", "/x is a folder; name the .safetensors file in it",
    "The metadata file /x/a.csv does not exist; give a .csv or .jsonl file, or leave metadata_path out.",
    "optimizer is 'torch.optim.SGD'; one that is a package.Class runs a program and can be set on the command line only; use one of adamw, lion",
    "the request has 300.0 MB but at most 250.0 MB are allowed here", "there is no LoRA x that was trained here; load the list again",
    "The folder of prior pictures (reg_data_dir) /x does not exist; give a folder with pictures.",
    "The folder of prior pictures (reg_data_dir) /x is a file; give the folder that holds the pictures.",
    "Forge has no checkpoint; put one into models/Stable-diffusion, then load this page again", "Forge could not load xl: there is no file /x/a.safetensors; check the path",
    "the checkpoint is held in a packed form (input_blocks.1.0), which cannot be trained; set \"Diffusion in Low Bits\" at the top of Forge to Automatic or a float8 form, and "
    "use a checkpoint file that is not packed itself (GGUF, NF4, scaled float8)",
    "the checkpoint is held in a packed form (input_blocks.1.0), which cannot be trained; use a checkpoint file that is not packed (GGUF, NF4, scaled float8)",
    "flux is of a kind (Flux) that cannot be trained here; use one of SD 1.x, 2.x or XL", "x has a denoiser (Lumina) that cannot be trained here; use one of SD 1.x, 2.x or XL",
    "x predicts neither noise nor velocity (edm), and cannot be trained in Forge", "x is an SDXL refiner; train on the SDXL base",
    "x is made for inpainting, depth or editing, and its denoiser takes more than a picture; use the base that it was made from",
    "x is a Stable Diffusion 3 model, which cannot be trained in the webui; use one of SD 1.x, 2.x or XL"]


@pytest.mark.parametrize("name, chinese", [("CON", "名称“CON”不能使用；可以改用“lora_CON”"), ("a/b", "名称“a/b”里有不能使用的“/”；可以改用“a_b”")])
def test_a_name_that_cannot_be_is_told_in_chinese(shared_server, open_page, name, chinese):
    with pytest.raises(ValueError) as error:
        check_name(name)
    page = open_page(shared_server, locale="zh-CN")
    page.get_by_role("heading", name="训练 LoRA").wait_for()
    assert page.evaluate(SAID, [str(error.value)]) == [chinese]


@pytest.mark.parametrize("language, button, sentence", [("en-US", r"^(Train|Add to the queue)$", "Choose pictures first"), ("zh-CN", "^(开始训练|加入队列)$", "请先选择图片")])
def test_train_without_pictures_asks_for_them(shared_server, open_page, language, button, sentence):
    page = open_page(shared_server, locale=language)
    page.get_by_role("button", name=re.compile(button)).click()
    page.locator(".field-error", has_text=sentence).wait_for()
    assert page.locator("input[list=hl-folders]").get_attribute("aria-describedby") == page.locator(".field-error").get_attribute("id")


def test_no_sentence_is_half_in_chinese(shared_server, open_page):
    page = open_page(shared_server, locale="zh-CN")
    page.get_by_role("heading", name="训练 LoRA").wait_for()
    for sentence, chinese in zip(SENTENCES, page.evaluate(SAID, SENTENCES), strict=True):
        assert re.search("[\u4e00-\u9fff]", chinese), sentence
        assert not re.search(r"\b(is|are|the|it|of|a|and|not|no|number|whole|from|file)\b", re.sub(r"\(.*?\)|\S*[./]\S*", "", chinese)), chinese

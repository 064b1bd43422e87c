"""The cache, on real picture files and encoders that are cheap to compute by hand."""
import random
import shutil

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hotlora.trainer import cache as cache_module
from hotlora.trainer.cache import LatentCache, TextCache, read_entry
from hotlora.trainer.demo import drawings
from hotlora.trainer.gallery import read_gallery
from hotlora.trainer.pictures import read_picture

BUCKET = (64, 64)


class Encoder:
    """Eightfold average, like the geometry of a VAE, that counts the pictures it has seen."""

    def __init__(self):
        self.seen = 0

    def __call__(self, x_B3HW):
        self.seen += len(x_B3HW)
        return F.avg_pool2d(x_B3HW, 8)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = random.Random(0)
    for i in range(4):
        drawings.draw_anything(rng).resize((160, 100)).save(folder / f"{i}.png")
    return folder


def prepare(cache, folder, **changes):
    examples = read_gallery(folder, masks=changes.get("masks", False)).examples
    return examples, cache.prepare(examples, lambda example: BUCKET, **{"crops": 2, "flip": True, **changes})


def test_an_unchanged_gallery_encodes_nothing_and_a_changed_picture_itself_alone(pictures, tmp_path):
    encoder = Encoder()
    cache = LatentCache(tmp_path / "cache", "vae", encoder)
    _, report = prepare(cache, pictures)
    assert (report.encoded, report.reused, encoder.seen) == (4, 0, 16)
    _, report = prepare(LatentCache(tmp_path / "cache", "vae", encoder), pictures)
    assert (report.encoded, report.reused, encoder.seen) == (0, 4, 16)
    drawings.draw_anything(random.Random(9)).resize((160, 100)).save(pictures / "2.png")
    _, report = prepare(cache, pictures)
    assert (report.encoded, report.reused, encoder.seen) == (1, 3, 20)


def test_a_renamed_or_moved_picture_is_found_again(pictures, tmp_path):
    encoder = Encoder()
    before, _ = prepare(cache := LatentCache(tmp_path / "cache", "vae", encoder), pictures)
    first = cache.load(before[0])
    shutil.copytree(pictures, tmp_path / "other")
    (tmp_path / "other" / "0.png").rename(tmp_path / "other" / "z 人.png")
    after, report = prepare(cache, tmp_path / "other")
    assert report.encoded == 0 and torch.equal(cache.load(after[-1])["z_VCHW"], first["z_VCHW"])


@pytest.mark.parametrize("changes", [{"crops": 3}, {"flip": False}, {"seed": 1}, {"masks": True}, {"augmentation": lambda picture, rng: picture.rotate(90)}])
def test_what_the_content_depends_on_is_in_the_key(pictures, tmp_path, changes):
    cache = LatentCache(tmp_path / "cache", "vae", Encoder())
    prepare(cache, pictures)
    assert prepare(cache, pictures, **changes)[1].encoded == 4
    assert prepare(LatentCache(tmp_path / "cache", "another vae", Encoder()), pictures)[1].encoded == 4


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: b"", lambda data: data[:-5] + b"wrong",
                                    lambda data: b"\xff" * 40 + data[40:]])
def test_a_damaged_file_is_noticed_and_made_again(pictures, tmp_path, damage):
    cache = LatentCache(tmp_path / "cache", "vae", Encoder())
    examples, _ = prepare(cache, pictures)
    whole = [cache.load(example)["z_VCHW"] for example in examples]
    victim = sorted((tmp_path / "cache").iterdir())[1]
    victim.write_bytes(damage(victim.read_bytes()))
    assert read_entry(victim) is None
    _, report = prepare(cache, pictures)
    assert (report.encoded, report.reused, report.repaired) == (1, 3, 1)
    assert all(torch.equal(a, cache.load(example)["z_VCHW"]) for a, example in zip(whole, examples))


def test_cuts_differ_and_mirror_images_are_mirrored(pictures, tmp_path):
    cache = LatentCache(tmp_path / "cache", "vae", Encoder())
    examples, _ = prepare(cache, pictures, crops=3)
    entry = cache.load(examples[0])
    z, size = entry["z_VCHW"], entry["size_V6"]
    assert z.shape == (6, 3, 8, 8) and size.shape == (6, 6)
    torch.testing.assert_close(z[3:], z[:3].flip(-1))
    assert size[:, :2].unique(dim=0).tolist() == [[100.0, 160.0]] and size[:, 4:].unique(dim=0).tolist() == [[64.0, 64.0]]
    assert len(size[:3, 3].unique()) > 1, "the cuts lie in different places"


def test_one_cut_is_the_middle_of_the_scaled_picture(tmp_path):
    picture = Image.new("RGB", (128, 64), "black")
    picture.paste("white", (32, 0, 96, 64))
    (tmp_path / "p").mkdir()
    picture.save(tmp_path / "p" / "a.png")
    cache = LatentCache(tmp_path / "cache", "vae", Encoder())
    examples, _ = prepare(cache, tmp_path / "p", crops=1, flip=False)
    assert torch.equal(cache.load(examples[0])["z_VCHW"], torch.ones(1, 3, 8, 8))


def test_masks_from_file_and_from_transparency(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    rng = random.Random(2)
    left = Image.new("L", (64, 64), 0)
    left.paste(255, (0, 0, 32, 64))
    drawings.draw_anything(rng).save(folder / "a.png")
    left.save(folder / "a_mask.png")
    transparent = drawings.draw_anything(rng).convert("RGBA")
    transparent.putalpha(left)
    transparent.save(folder / "b.png")
    drawings.draw_anything(rng).save(folder / "c.png")
    cache = LatentCache(tmp_path / "cache", "vae", Encoder())
    examples, _ = prepare(cache, folder, masks=True, crops=1)
    a, b, c = (cache.load(example)["mask_V1HW"] for example in examples)
    half = torch.zeros(1, 8, 8)
    half[..., :4] = 1
    for mask in (a, b):
        assert torch.equal(mask[0], half) and torch.equal(mask[1], half.flip(-1))
    assert torch.equal(c, torch.ones(2, 1, 8, 8))


def test_a_mask_painted_on_nothing_is_prepared_anew(tmp_path, monkeypatch):
    """Earlier versions took all of such a mask for white."""
    folder = tmp_path / "p"
    folder.mkdir()
    painted = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    painted.paste((255, 255, 255, 255), (0, 0, 32, 64))
    for name, mask in (("a", painted), ("b", painted.getchannel("A"))):
        drawings.draw_anything(random.Random(name)).save(folder / f"{name}.png")
        mask.save(folder / f"{name}_mask.png")
    with monkeypatch.context() as earlier:
        earlier.setattr(cache_module, "is_mask_by_opacity", lambda data: False)
        earlier.setattr(cache_module, "read_mask_file", lambda path: read_picture(path).convert("L"))
        prepare(cache := LatentCache(tmp_path / "cache", "vae", Encoder()), folder, masks=True)
    examples, report = prepare(cache, folder, masks=True, crops=2)
    assert (report.encoded, report.reused) == (1, 1)
    a, b = (cache.load(example)["mask_V1HW"] for example in examples)
    assert torch.equal(a, b) and a[0, 0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("gone", ["1.png", "1_mask.png"])
def test_a_picture_or_mask_that_goes_meanwhile_is_named(pictures, tmp_path, gone):
    Image.new("L", (160, 100), 255).save(pictures / "1_mask.png")
    examples = read_gallery(pictures, masks=True).examples
    cache = LatentCache(tmp_path / "cache", "vae", Encoder())
    sentence = rf"^{gone} cannot be used: it cannot be opened \(No such file or directory\); put it back or start the training again$"
    with pytest.raises(ValueError, match=sentence):
        cache.prepare(examples, lambda example: BUCKET, masks=True, progress=lambda done, total: (pictures / gone).unlink(missing_ok=True))


def test_captions_are_encoded_once_each(tmp_path):
    asked = []

    def encode(captions):
        asked.extend(captions)
        return {"hidden_BLD": torch.tensor([[[float(len(caption))]] for caption in captions])}

    cache = TextCache(tmp_path, "te", encode)
    assert cache.prepare(["", "a", "照片", "a"]).encoded == 3
    assert TextCache(tmp_path, "te", encode).prepare(["", "a", "照片"]).reused == 3 and asked == ["", "a", "照片"]
    assert cache.load("照片")["hidden_BLD"].tolist() == [[2.0]]
    assert TextCache(tmp_path, "other", encode).prepare(["a"]).encoded == 1

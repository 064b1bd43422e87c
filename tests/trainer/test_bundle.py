"""A job goes to another machine as one file: what is trained there is the same, and nothing in a file from elsewhere is trusted."""
import csv
import json
import os
import re
import shutil
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from hotlora.trainer import bundle_read
from hotlora.trainer.bundle import MANIFEST, SETTINGS_FILE, export_job
from hotlora.trainer.bundle_read import material_of, read_bundle, unpack
from hotlora.trainer.bundle_run import choose_base, prepare, write_result
from hotlora.trainer.hosts.base_files import BaseFacts, facts_of_base
from hotlora.trainer.lora_file import load_lora
from hotlora.trainer.output_files import OutputError, written_whole
from hotlora.trainer.run import make_session, read_material

DEMO = BaseFacts("demo", "")
WINDOWS = re.compile(r"[a-z0-9_./]+")


@pytest.fixture
def odd_gallery(gallery):
    """Names that Windows has not, a metadata.csv, masks, a folder that counts three times, and one picture twice with two captions."""
    def picture(name: str, colour, mask: str = "") -> None:
        path = gallery / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 64), colour).save(path)
        if mask:
            Image.new("L", (80, 64), mask).save(path.with_name(f"{path.stem}_mask.png"))

    for name, colour in (("con.png", "red"), ("what? a:b*.png", "blue"), ("A.png", "green"), ("a.png", "white"), ("3_sks/名.webp", "navy"), ("end. .png", "gray")):
        picture(name, colour, "black" if name == "A.png" else "")
    shutil.copyfile(gallery / "A.png", gallery / "copy.png")
    Image.new("L", (80, 64), "white").save(gallery / "copy_mask.png")
    with (gallery / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["file_name", "text"], ["con.png", "a red wall, \"quoted\""], ["A.png", "a green wall"], ["copy.png", "another caption"],
                                    ["3_sks/名.webp", "海"]])
    return gallery


@pytest.fixture
def material(config):
    """Read a run's material, with changes to the settings."""
    return lambda **changes: read_material(replace(config, **changes), make_captions=False)


def trained(session) -> dict:
    return load_lora(session.train().lora)[0]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key][part], other[key][part]) for key in one for part in ("up", "down"))


def facts(gallery) -> list:
    return [(e.content_hash, e.caption, e.written, e.width, e.height, e.repeats, e.is_prior, e.mask_path.read_bytes() if e.mask_path else None)
            for e in gallery.examples]


def test_what_is_trained_elsewhere_is_the_same(odd_gallery, material, backend, tmp_path):
    other = tmp_path / "prior"
    other.mkdir()
    Image.new("RGB", (64, 64), "pink").save(other / "aux.png")
    here = material(masks=True, reg_data_dir=str(other), flip=True, crops=2, steps=6)
    straight = trained(make_session(here, backend))
    path = tmp_path / "there" / "mascot.zip"
    done = export_job(path, here, facts_of_base("demo"))
    assert done.pictures == 13 and done.bytes == path.stat().st_size
    expected = facts(here.gallery), facts(here.prior)
    shutil.rmtree(odd_gallery)
    shutil.rmtree(other)

    bundle = read_bundle(path)
    out = tmp_path / "there" / "out"
    there, _ = prepare(bundle, choose_base(bundle, None), out, [])
    assert (facts(there.gallery), facts(there.prior)) == expected and there.name == "mascot"
    assert len({example.path for example in there.gallery.examples}) == 13, "a picture that is there twice has two paths"
    session = make_session(there, backend)
    assert same(trained(session), straight)
    assert load_lora(out / "mascot.safetensors")[1]["sshs_model_hash"] == load_lora(tmp_path / "out" / "mascot.safetensors")[1]["sshs_model_hash"]


def test_names_in_it_are_hashes_and_nothing_says_where_they_were(odd_gallery, material, tmp_path):
    path = tmp_path / "job.zip"
    export_job(path, material(masks=True, lora_dir=str(tmp_path / "loras"), cache_dir=str(tmp_path / "cache"), metadata_path=str(odd_gallery / "metadata.csv"),
                              leave_out=["0.png"]), DEMO)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        texts = [archive.read(name).decode("utf-8") for name in (MANIFEST, SETTINGS_FILE)]
        told = json.loads(texts[0])
    assert all(WINDOWS.fullmatch(name) for name in names) and len({name.casefold() for name in names}) == len(names)
    assert not any(str(place) in text for text in texts for place in (tmp_path, Path.home(), Path.cwd()))
    assert {entry["name"]: entry["caption"] for entry in told["pictures"]}["con.png"] == 'sks, a red wall, "quoted"'
    assert len(told["pictures"]) == 12 and '"0.png"' not in texts[0], "what is left out stays at home"
    assert sum(name.startswith("pictures/") for name in names) == 11, "what is there twice is written once"


def test_the_same_job_gives_the_same_bytes(material, tmp_path):
    for name in ("one.zip", "two.zip"):
        export_job(tmp_path / name, material(), DEMO)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_a_picture_that_changes_or_goes_leaves_no_half_bundle(gallery, material, tmp_path):
    path, here = tmp_path / "job.zip", material()
    path.write_bytes(b"the former one")
    Image.new("RGB", (64, 64), "red").save(gallery / "3.png")
    with pytest.raises(ValueError, match=r"3\.png has been changed while it was exported"):
        export_job(path, here, DEMO)
    (gallery / "3.png").unlink()
    with pytest.raises(ValueError, match=r"3\.png cannot be read"):
        export_job(path, here, DEMO)
    assert path.read_bytes() == b"the former one" and not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_leaves_no_half_file(tmp_path):
    path = tmp_path / "deep" / "file.zip"
    with pytest.raises(OutputError, match="the disk is full"):
        with written_whole(path) as file:
            file.write(b"some")
            raise OSError(28, "No space left on device")
    assert not list(path.parent.iterdir())
    with written_whole(path) as file:
        file.write(b"all")
    assert path.read_bytes() == b"all"


@pytest.mark.parametrize("setting", ["augmentation", "loss_term"])
def test_a_program_of_the_user_is_not_carried(material, setting, tmp_path):
    with pytest.raises(ValueError, match=f"{setting} is mine.py:it, a program of yours"):
        export_job(tmp_path / "job.zip", material(**{setting: "mine.py:it"}), DEMO)
    assert not (tmp_path / "job.zip").exists()


def test_a_lora_to_go_on_from_is_carried(material, backend, tmp_path):
    first = make_session(material(name="first"), backend).train().lora
    here = material(init_lora=str(first), save_format="peft")
    export_job(tmp_path / "job.zip", here, DEMO)
    bundle = read_bundle(tmp_path / "job.zip")
    there, _ = prepare(bundle, "demo", tmp_path / "there", ["lora_alpha=3"])
    assert Path(there.config.init_lora).read_bytes() == first.read_bytes() and there.config.save_format == "kohya"
    assert there.config.lora_alpha == 3 and there.config.output_dir == str(tmp_path / "there")


@pytest.mark.parametrize("name", ["[Lah] base", "{one}", "null", "end "])
def test_paths_of_this_machine_are_no_yaml(job, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    there, _ = prepare(read_bundle(job), name, Path(name), ["steps=3"])
    assert (there.config.base_model, there.config.output_dir, there.config.steps) == (name, name, 3)
    assert there.config.cache_dir == str(Path(name, "cache")) and Path(there.config.train_data_dir).is_dir()


@pytest.fixture
def job(material, tmp_path):
    path = tmp_path / "job.zip"
    export_job(path, material(), facts_of_base("demo"))
    return path


def changed(path: Path, change) -> Path:
    """The zip with its members as `change` leaves them: a list of (name, content)."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    change(members)
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def table(edit):
    """A change of what bundle.json says."""
    def change(members: list) -> None:
        told = json.loads(members[-1][1])
        edit(told)
        members[-1] = (MANIFEST, json.dumps(told).encode())

    return change


def with_file(name: str):
    """A stranger that the table names, as a careful attacker would."""
    def change(members: list) -> None:
        members.insert(0, (name, b"evil"))
        table(lambda told: told["files"].update({name: {"bytes": 4, "hash": "0" * 32}}))(members)

    return change


@pytest.mark.parametrize("change, expected", [
    (lambda m: m.append(("../evil.txt", b"evil")), r"'\.\./evil\.txt', which its table does not name"),
    (lambda m: m.append(("/tmp/evil.txt", b"evil")), "which its table does not name"),
    *[(with_file(name), "none that an exported job has") for name in
      ("../evil.png", "/evil.png", "pictures/../../evil.png", "pictures\\evil.png", "C:/evil.png", "pictures/con.png", "pictures/" + "0" * 32 + ".exe",
       "job.yaml/" + "0" * 32 + ".png", "pictures/" + "0" * 31 + "1.png")],
    (lambda m: m.pop(1), "lacks pictures/"),
    (lambda m: m.__setitem__(1, (m[1][0], m[1][1] + b"more")), "bytes but should have"),
    (lambda m: m.pop(), "no exported job"), (lambda m: m.pop(0), "no exported job"),
    (lambda m: m.__setitem__(-1, (MANIFEST, b"{")), "bundle.json is wrong"), (lambda m: m.__setitem__(-1, (MANIFEST, b"[" * 100_000)), "bundle.json is wrong"),
    (lambda m: m.__setitem__(-1, (MANIFEST, b"\xff\xfe")), "bundle.json is wrong"),
    (table(lambda t: t.update(version=99)), "version 99"), (table(lambda t: t.update(format="zip")), "version 1 of 'zip'"),
    (table(lambda t: t.update(name="../evil")), "the name '../evil'"), (table(lambda t: t.update(name="con")), "reserved on Windows"),
    (table(lambda t: t.pop("base")), "lacks base"), (table(lambda t: t["base"].update(hash="x")), "not of the form"), (table(lambda t: t.update(pictures=[])), "0 entries"),
    (table(lambda t: t["pictures"][0].update(file="../../etc/passwd")), "used and not among the files"),
    (table(lambda t: t["pictures"][0].update(mask="masks/x.png")), "used and not among the files"),
    (table(lambda t: t["pictures"][0].update(repeats=-1)), "repeats is -1"), (table(lambda t: t["files"].update(x=1)), "must be an object")])
def test_a_bundle_that_is_wrong_is_named_and_writes_nothing(job, change, expected, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=expected) as told:
        unpack(read_bundle(changed(job, change)), tmp_path / "there")
    assert str(job) in str(told.value) and "\n" not in str(told.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("line, expected", [
    ("augmentation: mine.py:it", "sets augmentation to 'mine.py:it', which no exported job does"), ("loss_term: os:abort", "sets loss_term"),
    ("lora_dir: /elsewhere", "sets lora_dir"), ("init_lora: /elsewhere/other.safetensors", "sets init_lora"), ("metadata_path: /elsewhere/a.csv", "sets metadata_path"),
    ("optimizer: mine.Optimizer", "add --set optimizer=mine.Optimizer")])
def test_settings_that_run_programs_or_reach_for_other_files_are_refused(job, line, expected, tmp_path):
    key = line.partition(":")[0]

    def set_it(members: list) -> None:
        lines = [line if old.startswith(f"{key}:") else old for old in members[0][1].decode().splitlines()]
        members[0] = (SETTINGS_FILE, "\n".join(lines).encode())

    bundle = read_bundle(changed(job, set_it))
    with pytest.raises(ValueError, match=expected):
        prepare(bundle, "demo", tmp_path / "there", [])
    assert not (tmp_path / "there").exists()


def test_an_optimizer_of_torch_is_carried_and_another_one_runs_if_asked_for(material, tmp_path):
    for optimizer, overrides in (("torch.optim.RAdam", []), ("mine.Optimizer", ["optimizer=mine.Optimizer"])):
        export_job(tmp_path / "job.zip", material(optimizer=optimizer), DEMO)
        assert prepare(read_bundle(tmp_path / "job.zip"), "demo", tmp_path / "there", overrides)[0].config.optimizer == optimizer


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: b"", lambda data: b"PK\x03\x04" + b"\0" * 500, lambda data: data[:200] + b"\0" * 50 + data[250:],
                                    lambda data: b"no zip at all"])
def test_a_damaged_file_is_one_sentence(job, damage, tmp_path):
    job.write_bytes(damage(job.read_bytes()))
    with pytest.raises(ValueError, match="damaged|no exported job|is not what"):
        unpack(read_bundle(job), tmp_path / "there")
    assert not [path for path in (tmp_path / "there").rglob("*")] if (tmp_path / "there").exists() else True


def test_other_contents_under_a_right_name(job, tmp_path):
    def swap(members: list) -> None:
        members[1] = (members[1][0], bytes(len(members[1][1])))

    with pytest.raises(ValueError, match="is not what its table says"):
        unpack(read_bundle(changed(job, swap)), tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())


def test_a_link_is_written_as_a_file(job, tmp_path):
    """What an archive calls a link is bytes here, and its bytes are not those of the hash."""
    with zipfile.ZipFile(job) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(job, "w") as archive:
        for info, content in members:
            if info.filename.startswith("pictures/"):
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, content)
    place = unpack(read_bundle(job), tmp_path / "there")
    assert not any(path.is_symlink() for path in place.rglob("*")) and len(list((place / "pictures").iterdir())) == 6


def test_two_entries_of_one_name(job):
    with pytest.warns(UserWarning, match="Duplicate"):
        changed(job, lambda members: members.append(members[1]))
    with pytest.raises(ValueError, match="two files of one name"):
        read_bundle(job)


def test_bombs(job, tmp_path, monkeypatch):
    def blown(members: list) -> None:
        members[-1] = (MANIFEST, members[-1][1] + b" " * 3_000_000)

    monkeypatch.setattr(bundle_read, "LARGEST_TABLE", 1_000_000)
    changed(job, blown)
    with pytest.raises(ValueError, match="more than 1 MB"):
        read_bundle(job)
    monkeypatch.setattr(bundle_read, "MOST_FILES", 3)
    with pytest.raises(ValueError, match="holds 8 files, more than the 3"):
        read_bundle(job)


def test_no_room_is_said_before_anything_is_unpacked(job, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(bundle_read.shutil, "disk_usage", lambda folder: usage._replace(free=100))
    with pytest.raises(OutputError, match="GB are free; free some space"):
        unpack(read_bundle(job), tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())


def test_unpacked_files_are_used_again_and_mended(job, tmp_path):
    bundle = read_bundle(job)
    place = unpack(bundle, tmp_path / "there")
    file = next((place / "pictures").iterdir())
    content, written = file.read_bytes(), file.stat().st_mtime_ns
    assert unpack(bundle, tmp_path / "there") == place and file.stat().st_mtime_ns == written
    file.write_bytes(b"changed")
    assert unpack(bundle, tmp_path / "there") == place and file.read_bytes() == content


def test_a_picture_that_cannot_be_read_there_is_named_as_here(job, config, tmp_path):
    bundle = read_bundle(job)
    place = unpack(bundle, tmp_path / "there")
    (place / bundle.pictures[2]["file"]).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"2\.png in .*job\.zip cannot be read as a picture"):
        material_of(bundle, place, config)


def test_a_wrong_base_is_noticed(job, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")
    bundle = read_bundle(job)
    wanted, found = bundle.base, facts_of_base(str(other))
    with pytest.raises(ValueError) as told:
        choose_base(bundle, str(other))
    for part in ("demo", wanted.hash[:12], "other", found.hash[:12], "--any-base"):
        assert part in str(told.value), part
    assert choose_base(bundle, str(other), any_base=True) == str(other) and "not on demo" in caplog.text
    assert choose_base(bundle, None) == choose_base(bundle, "demo") == "demo"
    with pytest.raises(ValueError, match="nowhere.safetensors does not exist"):
        choose_base(bundle, "nowhere.safetensors")


def test_the_base_is_found_by_its_hash_whatever_it_is_called(material, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("models/mine.safetensors", "renamed.safetensors"):
        (tmp_path / name).write_bytes(b"weights")
    export_job(tmp_path / "job.zip", material(), facts_of_base("models/mine.safetensors"))
    bundle = read_bundle(tmp_path / "job.zip")
    assert choose_base(bundle, None) == str(Path("models/mine.safetensors")) and choose_base(bundle, "renamed.safetensors") == "renamed.safetensors"
    (tmp_path / "models" / "mine.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="was made for the base mine .* but models.mine.safetensors is mine"):
        choose_base(bundle, None)
    (tmp_path / "models" / "mine.safetensors").unlink()
    with pytest.raises(ValueError, match="mine .*which is not here; name it with --base"):
        choose_base(bundle, None)
    export_job(tmp_path / "unknown.zip", material(), BaseFacts("renamed"))
    assert choose_base(read_bundle(tmp_path / "unknown.zip"), "renamed.safetensors") == "renamed.safetensors" and "nothing but the name" in caplog.text


def test_a_result_holds_the_lora_and_the_newest_preview(job, backend, tmp_path):
    bundle = read_bundle(job)
    there, _ = prepare(bundle, "demo", tmp_path / "there", ["preview_steps=2", "preview_prompts=[sks]"])
    session = make_session(there, backend)
    result = write_result(session, session.train(), bundle)
    with zipfile.ZipFile(result.path) as archive:
        assert archive.read("mascot.safetensors") == (tmp_path / "there" / "mascot.safetensors").read_bytes()
        assert archive.read("preview.png") == (tmp_path / "there" / "previews" / "mascot-000004-0.png").read_bytes()
        assert json.loads(archive.read("result.json"))["base"]["hash"] == backend.base_hash


def test_a_result_holds_no_picture_of_another_run(job, backend, tmp_path):
    """They lie in one folder: those of other LoRAs whose names begin alike, and those of an earlier run, whose person is perhaps another."""
    bundle, previews = read_bundle(job), tmp_path / "there" / "previews"
    previews.mkdir(parents=True)
    for name in ("mascot-2-000004-0.png", "mascot-last-0.png", "mascot-000003-0.png", "mascot-000009-0.png"):
        (previews / name).write_bytes(b"another person")
        os.utime(previews / name, (1e9, 1e9))
    there, _ = prepare(bundle, "demo", tmp_path / "there", ["preview_prompts=[sks]"])
    session = make_session(there, backend)
    outcome = session.train()
    for name in ("mascot-2-000004-0.png", "mascot-last-0.png", "mascot-000009-0.png"):
        os.utime(previews / name)
    with zipfile.ZipFile(write_result(session, outcome, bundle).path) as archive:
        assert "preview.png" not in archive.namelist()
    (previews / "mascot-000002-0.png").write_bytes(b"its own")
    with zipfile.ZipFile(write_result(session, outcome, bundle).path) as archive:
        assert archive.read("preview.png") == b"its own"


def test_who_has_no_caption_is_told_but_not_of_a_folder_whose_name_is_one(gallery, material, tmp_path):
    for path in gallery.glob("*.txt"):
        path.unlink()
    told = export_job(tmp_path / "a.zip", material(trigger="", auto_caption=True), DEMO).warnings
    assert any(warning.startswith("6 pictures have no caption") for warning in told)
    gallery.rename(tmp_path / "10_sks dog")
    (tmp_path / "above").mkdir()
    (tmp_path / "10_sks dog").rename(tmp_path / "above" / "10_sks dog")
    here = material(trigger="", auto_caption=True, train_data_dir=str(tmp_path / "above"))
    assert export_job(tmp_path / "b.zip", here, DEMO).warnings == []

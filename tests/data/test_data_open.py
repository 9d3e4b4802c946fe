"""``open_data``: names, paths and data objects."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tutelage.data import open_data


def test_data_object_is_returned_unchanged(make_data):
    data = make_data()
    assert open_data(data) is data


@pytest.mark.parametrize(
    ("spec", "pieces"),
    [
        ("digit", ("'digit'", "did you mean 'digits'", "npz")),
        ("fodler:x", ("'fodler'", "did you mean 'folder'")),
        ("zebra", ("'zebra'", "idx:FOLDER", "boxes, digits, folder, frames, hf, idx, maps, masks, npz")),
        ("", ("''", "digits")),
        ("digits:3", ("'digits:3'", "leave out ':3'")),
        ("idx:", ("needs a folder", "idx:path/to/folder")),
        ("npz:", ("needs a file", "npz:path/to/file")),
        ("folder:", ("needs a folder",)),
        ("hf:", ("needs the name", "hf:")),
        ("idx:nowhere", ("no folder nowhere", "check the path")),
        ("npz:nowhere.npz", ("no file nowhere.npz", "check the path")),
        ("folder:nowhere", ("no folder nowhere", "check the path")),
        ("npz:~nobody-of-that-name/x.npz", ("~nobody-of-that-name", "write the whole path")),
        ("npz:here", ("here is a folder", "name a file")),
        ("idx:here.npz", ("here.npz is a file", "name a folder")),
        ("folder:here.npz", ("here.npz is a file", "name a folder")),
        ("here.npz", ("'here.npz'", "npz:here.npz")),
        ("here", ("'here'", "folder:here")),
    ],
)
def test_unknown_names_and_missing_paths_are_refused(tmp_path, monkeypatch, refused, spec, pieces):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("here.npz").touch()
    with refused(*pieces):
        open_data(spec)


def test_unreadable_file_is_refused(tmp_path, monkeypatch, refused):
    file = tmp_path / "secret.npz"
    file.touch()

    def forbidden(self, *_args, **_options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbidden)  # root can read any file, so a file mode of 0 would not fail
    with refused(file, "Permission denied", "permissions"):
        open_data(f"npz:{file}")


@pytest.mark.parametrize("spec", ["digits", "idx:x", "npz:x"])
def test_image_size_is_refused_for_formats_that_do_not_resize(refused, spec):
    with refused("32", "leave it out", spec.partition(":")[0]):
        open_data(spec, image_size=32)


def test_image_size_is_refused_for_data_objects(make_data, refused):
    with refused("32", "made"):
        open_data(make_data(), image_size=32)


def test_home_folder_is_expanded(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("HOME", str(tmp_path))
    with refused(tmp_path / "nowhere"):
        open_data("folder:~/nowhere")


def test_opening_digits_imports_no_modules_of_other_formats(monkeypatch):
    modules = [
        f"tutelage.data.{name}" for name in ("formats.idx", "formats.npz", "formats.folder", "formats.hf", "decode")
    ]
    for module in modules:
        monkeypatch.delitem(sys.modules, module, raising=False)
    open_data("digits")
    assert not set(modules) & set(sys.modules)

"""Parquet files as data sets: columns of paths and of bytes, names, prompts, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_toys
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from dataset_toys import rows

from samx.commands.dataset import DatasetRequest, segment_dataset
from samx.datasets import processes
from samx.datasets.pictures import Reader
from samx.datasets.sources import open_source, prompt_words, survey
from samx.errors import InputError, SamxError, UsageError
from samx.progress import silent

CELLS = [b"x" * (1 + n % 9) for n in range(20)]


def table(folder: Path, name: str = "a.parquet", group: int = 7, **columns: Any) -> Path:
    """Write a table with small row groups."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


def listed(path: Path | str, **given: Any) -> list[tuple[str, bytes]]:
    """Return names and bytes of all pictures."""
    read, options = Reader(), {"column": None, "names": None, "prompts": None, **given}
    source = open_source(str(path), **options)
    assert survey(source, silent) == len(list(source.pictures()))
    return [(picture.name, read(picture)) for picture in source.pictures()]


def test_a_column_of_bytes(tmp_path: Path) -> None:
    path = table(tmp_path, image=CELLS, key=[f"k{n}" for n in range(20)], number=list(range(20)))
    assert listed(path) == [(f"a.parquet#{n}", cell) for n, cell in enumerate(CELLS)]
    assert listed(path, names="key") == [(f"k{n}", cell) for n, cell in enumerate(CELLS)]
    assert listed(path, names="number")[19] == ("19", CELLS[19])


def test_a_structure_with_bytes_as_hugging_face_writes_it(tmp_path: Path) -> None:
    cells = [{"bytes": cell, "path": "same.png"} for cell in CELLS]
    path = table(tmp_path, photo=cells)
    expected = [(f"a.parquet#{n}", cell) for n, cell in enumerate(CELLS)]
    assert listed(path, column="photo") == listed(path, column="photo.bytes") == expected


def test_a_column_of_paths(tmp_path: Path) -> None:
    dataset_toys.blanks(tmp_path / "in", ["a.png", "b.png"])
    (tmp_path / "c.png").write_bytes(b"ccc")
    path = table(tmp_path / "in", file=["a.png", "../c.png", (tmp_path / "in" / "b.png").as_uri()])
    assert [data for _, data in listed(path, column="file")] == [b"x", b"ccc", b"xx"]
    assert [name for name, _ in listed(path, column="file")][:2] == ["a.png", "../c.png"]


def test_paths_that_are_empty_cost_their_rows_alone(
    all_masks_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "COMMAND", dataset_toys.COMMAND)
    dataset_toys.blanks(tmp_path / "in", ["a.png"])
    path = table(tmp_path / "in", image=["a.png", " ", "", None])
    segment_dataset(DatasetRequest(str(path), str(tmp_path / "out"), all_masks_artifact, {}, workers=1))
    assert [(row["picture"], row["error"]) for row in rows(tmp_path / "out")] == [
        ("a.parquet#1", "picture 'a.parquet#1' does not exist. Check the path."),
        ("a.parquet#2", "picture 'a.parquet#2' has no bytes: found an empty cell"),
        ("a.parquet#3", "picture 'a.parquet#3' has no bytes: found an empty cell"),
        ("a.png", None),
    ]


def test_a_folder_of_tables_and_a_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "all.parquet"
    table(folder, "x/1.parquet", image=CELLS[:3])
    table(folder, "2.parquet", image=CELLS[3:5])
    table(folder, "other/3.parquet", image=CELLS[5:6])
    (folder / "_SUCCESS").write_bytes(b"")
    assert [name for name, _ in listed(folder)] == [
        "2.parquet#0", "2.parquet#1", "other/3.parquet#0", *(f"x/1.parquet#{n}" for n in range(3))
    ]  # fmt: skip
    assert [data for _, data in listed(f"{folder}/x/*.parquet")] == CELLS[:3]


def test_no_table_is_passed_over_for_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "fold[1].parquet"
    table(folder, "1.PARQUET", image=CELLS[:3])
    table(tmp_path / "elsewhere", "2.parquet", image=CELLS[3:5])
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "folder.parquet").mkdir()
    assert listed(folder) == [(f"{name}#{n}", cell) for name, n, cell in [
        ("1.PARQUET", 0, CELLS[0]), ("1.PARQUET", 1, CELLS[1]), ("1.PARQUET", 2, CELLS[2]),
        ("linked/2.parquet", 0, CELLS[3]), ("linked/2.parquet", 1, CELLS[4]),
    ]]  # fmt: skip
    assert [data for _, data in listed(folder / "1.PARQUET")] == CELLS[:3]
    assert [data for _, data in listed(f"{folder}/*.PARQUET")] == CELLS[:3]
    assert [data for _, data in listed(f"{tmp_path}/elsewher[e]/*.parquet")] == CELLS[3:5]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (None, None), ([], ()), ("box=1,2,3,4", ("box=1,2,3,4",)), ([1, 2, 3.5, 4], ("box=1,2,3.5,4",)),
        ([[1, 2, 3, 4], [5, 6]], ("box=1,2,3,4", "point=5,6")), ([7.25, 8], ("point=7.25,8",)),
        (["point=1,2 background=3,4", [1, 2]], ("point=1,2 background=3,4", "point=1,2")),
        ([1, 2, 3], ("[1, 2, 3]",)), ([[True, 2]], ("[True, 2]",)), ({"box": 1}, ("{'box': 1}",)),
        ("", ("''",)), ([" ", [1, 2]], ("' '", "point=1,2")),
    ],
    ids=repr,
)  # fmt: skip
def test_cells_of_prompts_become_words(cell: Any, words: tuple[str, ...] | None) -> None:
    assert prompt_words(cell) == words


def test_prompts_of_a_column(tmp_path: Path) -> None:
    column: list[Any] = [[[1.0, 2.0, 30.0, 40.0], [5.0, 6.0]], [], None]
    path = table(tmp_path, image=CELLS[:3], boxes=column)
    source = open_source(str(path), None, None, "boxes")
    assert [picture.prompts for picture in source.pictures()] == [
        ("box=1.0,2.0,30.0,40.0", "point=5.0,6.0"), (), None
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "given", "error", "words"),
    [
        ({"file": CELLS}, {}, UsageError, r"has no column 'image': expected file \(binary\). Name it: --column."),
        ({"image": [1, 2]}, {}, UsageError, "column 'image' of .* holds no pictures: found int64, expected paths"),
        ({"image": CELLS}, {"names": "key"}, UsageError, "has no column 'key'.*Name it: --names"),
        ({"image": CELLS}, {"prompts": "boxes"}, UsageError, "has no column 'boxes'.*Name it: --prompts"),
        ({"image": CELLS[:2], "key": ["a", None]}, {"names": "key"}, InputError, "row 1 of .* has no name"),
        ({"image": CELLS[:2], "key": ["a", " "]}, {"names": "key"}, InputError, "row 1 of .* has no name"),
        ({"image": CELLS[:3], "key": ["a", "b", "a"]}, {"names": "key"}, InputError, "twice.*found 'a'.*--names"),
        ({"image": ["x.png", "y.png", "x.png"]}, {}, InputError, "a picture is there twice in .* found 'x.png'"),
        ({"image": [{"path": "a"}]}, {}, UsageError, "holds no pictures: found struct<path"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_table_lacks_is_told(
    columns: dict[str, Any], given: dict[str, Any], error: type[SamxError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        listed(table(tmp_path, **columns), **given)


def test_a_file_that_is_no_table_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match=r"table 'file:.*a.parquet' cannot be read: found ArrowInvalid"):
        listed(tmp_path / "a.parquet")
    for missing in ("none.parquet", "none*.parquet"):
        with pytest.raises(InputError, match=r"does not exist|there is no Parquet file"):
            listed(tmp_path / missing)


def test_a_table_that_is_cut_off_in_the_middle_costs_its_pictures_alone(tmp_path: Path) -> None:
    path = table(tmp_path, image=[bytes([n]) * 5000 for n in range(20)])
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56  # of the first row group's pictures
    path.write_bytes(data)
    source, read = open_source(str(path), None, None, None), Reader()
    first, *_, last = source.pictures()
    with pytest.raises(InputError, match=r"picture 'a.parquet#0' cannot be read"):
        read(first)
    assert read(last) == bytes([19]) * 5000


def test_a_row_group_that_does_not_fit_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samx.datasets.tables.GROUP_CAP_BYTES", 1 << 20)
    path = table(tmp_path, image=[bytes(range(256)) * 2000 for _ in range(3)], group=1)
    assert len(listed(path)) == 3
    path = table(tmp_path, image=[bytes([n, 7]) * 400_000 for n in range(9)], group=9)
    with pytest.raises(InputError, match=r"row group 0 of .* is too large: found \d MiB of 'image'.*row_group_size"):
        listed(path)


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "a\udcff.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"the name of a picture is no text: found 'a\\udcff.png'. Rename it."):
        survey(open_source(str(tmp_path), None, None, None), silent)


def test_tables_without_rows_are_refused(all_masks_artifact: Path, tmp_path: Path) -> None:
    path = table(tmp_path, image=pa.array([], pa.binary()))
    for source in (path, f"{tmp_path}/*.parquet"):
        with pytest.raises(InputError, match=r"there are no pictures in 'file:.*parquet': found no rows"):
            segment_dataset(DatasetRequest(str(source), str(tmp_path / "out"), all_masks_artifact, {}))
    assert list(tmp_path.iterdir()) == [path]
    table(tmp_path, "b.parquet", image=CELLS[:2])
    assert len(listed(f"{tmp_path}/*.parquet")) == 2


def test_a_table_is_segmented_and_gone_on_with(
    all_masks_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "COMMAND", dataset_toys.COMMAND)
    path = table(tmp_path, image=CELLS, key=[f"{'once' if n == 11 else 'k'}{n:02}" for n in range(20)])
    make: Callable[..., DatasetRequest] = lambda **given: DatasetRequest(  # noqa: E731
        str(path), str(tmp_path / "out"), all_masks_artifact, {}, names="key", per_file=6, workers=2, **given
    )
    segment_dataset(make())
    found = rows(tmp_path / "out")
    assert sorted((row["picture"][-2:], row["width"]) for row in found) == [
        (f"{n:02}", len(cell)) for n, cell in enumerate(CELLS)
    ]
    sorted((tmp_path / "out").glob("part-*"))[1].unlink()
    assert segment_dataset(make())["done_now"] in (6, 2)
    assert rows(tmp_path / "out") == found

"""Every form of file gives the same records, one at a time, and a file that is broken as a whole says so."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stages.ingest_runs import ingest

from kd_runtime.api.dataset import DatasetFormat
from kd_runtime.api.failures import DataError
from kd_runtime.stages.dataset_records import Malformed, Record
from kd_runtime.stages.datasets import choose_files, read_file

COLUMNS = ("question", "answer")
RECORDS = [
    {"question": "What colour is the sky?", "answer": 'Blue.\nAlways "blue", [not] {grey}.'},
    {"question": "Käse, or \\ cheese?", "answer": "日本, 🙂"},
    {"question": "x" * 300_000, "answer": ","},
]


def as_jsonl(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\r\n" for record in records).encode()


def as_json(records: list[dict[str, Any]]) -> bytes:
    return json.dumps(records, ensure_ascii=False, indent=2).encode()


def as_csv(records: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["id", *COLUMNS])
    writer.writeheader()
    writer.writerows({"id": number, **record} for number, record in enumerate(records))
    return text.getvalue().encode()


def as_table(records: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"id": number, **record} for number, record in enumerate(records)])


def as_parquet(records: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(as_table(records), sink, row_group_size=2)
    return sink.getvalue()


def as_arrow(records: list[dict[str, Any]]) -> bytes:
    table, sink = as_table(records), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def as_arrow_file(records: list[dict[str, Any]]) -> bytes:
    table, sink = as_table(records), io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


FORMS: dict[str, tuple[DatasetFormat, Callable[[list[dict[str, Any]]], bytes]]] = {
    "a.jsonl": (DatasetFormat.JSONL, as_jsonl),
    "a.json": (DatasetFormat.JSON, as_json),
    "a.csv": (DatasetFormat.CSV, as_csv),
    "a.parquet": (DatasetFormat.Parquet, as_parquet),
    "hub.arrow": (DatasetFormat.HuggingFace, as_arrow),
    "hub-file.arrow": (DatasetFormat.HuggingFace, as_arrow_file),
    "hub.parquet": (DatasetFormat.HuggingFace, as_parquet),
    "hub.jsonl": (DatasetFormat.HuggingFace, as_jsonl),
    "hub.json": (DatasetFormat.HuggingFace, as_json),
    "hub-lines.json": (DatasetFormat.HuggingFace, as_jsonl),
    "hub.csv": (DatasetFormat.HuggingFace, as_csv),
}


def read(tmp_path: Path, name: str, body: bytes, form: DatasetFormat) -> list[Record | Malformed]:
    path = tmp_path / name
    path.write_bytes(body)
    return list(read_file(path, name, form, COLUMNS))


def mapped(records: list[Record | Malformed]) -> list[dict[str, Any]]:
    return [{name: record.fields[name] for name in COLUMNS} for record in records if isinstance(record, Record)]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_records(tmp_path: Path, name: str) -> None:
    form, write = FORMS[name]
    body = write(RECORDS)
    records = read(tmp_path, name, body, form)
    assert mapped(records) == RECORDS
    assert len({record.source for record in records}) == 3
    assert 0 < records[-1].position <= len(body)


@pytest.mark.parametrize("name", [name for name in FORMS if name.endswith(("jsonl", "json", "csv"))])
def test_a_gzip_file_is_read_like_what_it_holds(tmp_path: Path, name: str) -> None:
    form, write = FORMS[name]
    assert mapped(read(tmp_path, f"{name}.gz", gzip.compress(write(RECORDS)), form)) == RECORDS


@pytest.mark.parametrize("name", [name for name in FORMS if name.endswith(("jsonl", "json", "csv"))])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    form, write = FORMS[name]
    assert mapped(read(tmp_path, name, b"\xef\xbb\xbf" + write(RECORDS), form)) == RECORDS


def test_a_damaged_gzip_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: is a damaged gzip file"):
        read(tmp_path, "a.jsonl.gz", gzip.compress(as_jsonl(RECORDS))[:-30], DatasetFormat.JSONL)


def test_lines_are_told_in_text_and_rows_in_tables(tmp_path: Path) -> None:
    json_body = b'[\n\n{"question": "a",\n "answer": "b"},\n{"question": "c", "answer": "d"}]\n'
    csv_body = b'question,answer\n"two\nlines",x\ny,z\n'
    sources = {
        "a.json": [r.source for r in read(tmp_path, "a.json", json_body, DatasetFormat.JSON)],
        "a.csv": [r.source for r in read(tmp_path, "a.csv", csv_body, DatasetFormat.CSV)],
        "a.parquet": [r.source for r in read(tmp_path, "a.parquet", as_parquet(RECORDS), DatasetFormat.Parquet)],
    }
    assert sources == {
        "a.json": ["a.json:3", "a.json:5"],
        "a.csv": ["a.csv:2", "a.csv:4"],
        "a.parquet": ["a.parquet:1", "a.parquet:2", "a.parquet:3"],
    }


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"question": 1,}', "BadJSON"),
        (b'{"question": [1, 2}', "BadJSON"),
        (b'{"question": "\xe4"}', "NotUTF8"),
        (b'"text"', "BadJSON"),
        (b'{"a": "}]"} x', "BadJSON"),
        (b'{"a": ]}', "BadJSON"),
    ],
)
def test_damage_stays_within_one_element_of_an_array(tmp_path: Path, bad: bytes, reason: str) -> None:
    good = json.dumps(RECORDS[0]).encode()
    records = read(tmp_path, "a.json", b"[" + good + b",\n" + bad + b",\n" + good + b"]", DatasetFormat.JSON)
    assert [type(r).__name__ for r in records] == ["Record", "Malformed", "Record"]
    malformed = records[1]
    assert isinstance(malformed, Malformed) and (malformed.source, malformed.reason) == ("a.json:2", reason)


@given(
    records=st.lists(
        st.dictionaries(st.text(max_size=8), st.text() | st.integers() | st.lists(st.text())), max_size=12
    ),
    indent=st.sampled_from([None, 1]),
)
@settings(max_examples=60, deadline=None)
def test_any_array_of_objects_is_cut_where_json_would(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], indent: int | None
) -> None:
    body = json.dumps(records, indent=indent).encode()
    found = read(tmp_path_factory.mktemp("json"), "a.json", body, DatasetFormat.JSON)
    assert [r.fields for r in found if isinstance(r, Record)] == json.loads(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"question": "a"}\n{"question": "b"}\n', r"does not begin with '\['; format JSON reads one array"),
        (b'[{"question": "a"},\n{"question": ', r"a\.json:2: the array is not closed"),
        (b'[{"question": "a"}]\n[{"question": "b"}]', r"a\.json:1: more follows after the array"),
        (b"", r"does not begin with"),
    ],
)
def test_an_array_that_is_none_is_an_error(tmp_path: Path, body: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, "a.json", body, DatasetFormat.JSON)


def test_bad_lines_of_csv_are_rejected_one_by_one(tmp_path: Path) -> None:
    lines = [b"question,answer", b"a,b", b"only one", b"a,b,c", b"K\xe4se,x", b'"a"b,c', b"", b"c,d", b""]
    records = read(tmp_path, "a.csv", b"\n".join(lines), DatasetFormat.CSV)
    found = {r.source: r.detail if isinstance(r, Malformed) else r.fields["question"] for r in records}
    assert found["a.csv:2"] == "a" and found["a.csv:8"] == "c"
    assert found["a.csv:3"] == "has 1 values for 2 columns" and found["a.csv:4"] == "has 3 values for 2 columns"
    assert found["a.csv:6"].startswith("the line is not CSV")
    assert found["a.csv:5"] == "K\udce4se"  # a lone surrogate, which ingest rejects as NotUTF8


def test_a_quote_that_is_never_closed_is_an_error_and_swallows_nothing_in_silence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv:3: a quote that opens here is never closed"):
        read(tmp_path, "a.csv", b'question,answer\na,b\n"c,d\ne,f\n', DatasetFormat.CSV)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "hub.arrow"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, name: str) -> None:
    form, write = FORMS[name]
    path = tmp_path / name
    path.write_bytes(write(RECORDS))
    with pytest.raises(
        DataError, match=f"spec.dataset.fields: {name} has no column 'query'; it has id, question, answer"
    ):
        list(read_file(path, name, form, ("query", "answer")))


@pytest.mark.parametrize("name", ["a.parquet", "hub.arrow"])
def test_a_damaged_table_is_an_error(tmp_path: Path, name: str) -> None:
    form, write = FORMS[name]
    with pytest.raises(DataError, match=f"{name}: is (not a readable|cut off)"):
        read(tmp_path, name, write(RECORDS)[:-400], form)


def test_text_of_a_table_that_is_not_utf8_spoils_its_row_alone(tmp_path: Path) -> None:
    answers = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    sink = io.BytesIO()
    pq.write_table(pa.table({"question": ["x", "y", "z"], "answer": answers}), sink)
    records = read(tmp_path, "a.parquet", sink.getvalue(), DatasetFormat.Parquet)
    assert [type(r).__name__ for r in records] == ["Record", "Malformed", "Record"]
    malformed = records[1]
    assert isinstance(malformed, Malformed)
    assert (malformed.source, malformed.detail) == ("a.parquet:2", "column 'answer': byte 0xff at 0 is not UTF-8")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_large_file_is_never_in_memory_whole(tmp_path: Path, name: str) -> None:
    form, write = FORMS[name]
    body = write([{"question": "q" * 2000, "answer": "a" * 2000}] * 5000)
    path = tmp_path / name
    path.write_bytes(body)
    tracemalloc.start()
    count = sum(1 for _ in read_file(path, name, form, COLUMNS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5000 and peak < len(body) / 3


NAMES = {
    "JSONL takes .jsonl and .ndjson, sorted": (
        ["b.jsonl", "a.ndjson", "README.md", "x/c.jsonl.gz"],
        "JSONL",
        None,
        ["a.ndjson", "b.jsonl", "x/c.jsonl.gz"],
    ),
    "one file whatever its name": (["data.txt"], "JSONL", None, ["data.txt"]),
    "hub: the split's files": (
        ["README.md", "data/test-0.parquet", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        "HuggingFace",
        None,
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
    ),
    "hub: another split": (["train.jsonl", "test.jsonl"], "HuggingFace", "test", ["test.jsonl"]),
    "hub: saved to disk": (
        ["dataset_dict.json", "train/data-00000-of-00001.arrow", "train/state.json", "test/data-00000-of-00001.arrow"],
        "HuggingFace",
        "train",
        ["train/data-00000-of-00001.arrow"],
    ),
    "hub: no split mentioned": (
        ["state.json", "data-00000-of-00001.arrow"],
        "HuggingFace",
        None,
        ["data-00000-of-00001.arrow"],
    ),
    "hub: a word that holds the split's name": (
        ["training_notes.csv", "gsm8k_train.csv"],
        "HuggingFace",
        None,
        ["gsm8k_train.csv"],
    ),
    "hub: a split of one's own": (["train.csv", "hard.csv"], "HuggingFace", "hard", ["hard.csv"]),
}


@pytest.mark.parametrize("what", NAMES)
def test_the_files_of_a_dataset_are_chosen_by_name(what: str) -> None:
    names, form, split, expected = NAMES[what]
    chosen = choose_files(names, DatasetFormat(form), split, "file:///d/")
    assert list(chosen.read) == expected
    assert sorted([*chosen.read, *chosen.ignored]) == sorted(names)


@pytest.mark.parametrize(
    ("names", "form", "split", "message"),
    [
        (
            ["a.csv", "b.csv"],
            "JSONL",
            None,
            r"holds no JSONL file \(.jsonl, .ndjson\) but a.csv, b.csv; correct uri or format",
        ),
        (
            ["train.csv", "test.csv"],
            "HuggingFace",
            "dev",
            r"spec.dataset.split: file:///d/ has no split 'dev'; it has test, train",
        ),
        (
            ["main/train-0.parquet", "socratic/train-0.parquet"],
            "HuggingFace",
            None,
            r"several configurations \(main, socratic\)",
        ),
    ],
)
def test_what_is_not_there_is_named(names: list[str], form: str, split: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_files(names, DatasetFormat(form), split, "file:///d/")


def test_a_prefix_is_read_file_by_file_in_sorted_order(tmp_path: Path, tiny_models: Path) -> None:
    files = {f"{name}.jsonl": as_jsonl([{"question": f"Q {name}?", "answer": "A."}]) for name in ("b", "a", "deep/c")}
    made = ingest(tmp_path, tiny_models, {**files, "notes.txt": b"x"})
    assert [row.source for row in made.rows] == ["a.jsonl:1", "b.jsonl:1", "deep/c.jsonl:1"]
    assert made.manifest.extra["files"] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert made.manifest.extra["ignored"] == ["notes.txt"]


@pytest.mark.parametrize("form", ["Parquet", "CSV", "JSON", "HuggingFace"])
def test_rows_do_not_depend_on_the_form_of_the_file(tmp_path: Path, tiny_models: Path, form: str) -> None:
    records = [{"question": f"What is {n}?", "answer": "A number."} for n in range(20)]
    writers = {"Parquet": as_parquet, "CSV": as_csv, "JSON": as_json, "HuggingFace": as_arrow}
    names = {"Parquet": "d.parquet", "CSV": "d.csv", "JSON": "d.json", "HuggingFace": "train/data-00000-of-00001.arrow"}
    lines = ingest(tmp_path / "jsonl", tiny_models, {"d.jsonl": as_jsonl(records)})
    made = ingest(tmp_path / form, tiny_models, {names[form]: writers[form](records)}, format=form)
    assert [(row.key, row.split) for row in made.rows] == [(row.key, row.split) for row in lines.rows]

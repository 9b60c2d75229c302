"""Shards on real files: what is written comes back bit for bit, and failures leave nothing behind."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs as pafs

from evidence.columns import nested_column
from evidence.records import EvidenceRecord, RolloutRequest, Sample, ScoredSample
from evidence.rule import EvidenceConfig, judge, judge_all
from evidence.schema import COLUMNS, SCHEMA_VERSION, check_table, to_table, train_rows
from evidence.shards import check_unshared, read_shard, recompute, shard_name, write_shard
from evidence.storage import join
from tests.fakes import scored_step

RULE = EvidenceConfig(soft="rlsd")
METADATA = {
    "run_id": "r1",
    "step": "3",
    "mask_rule": RULE.to_json(),
    "model_id": "tiny",
    "weights_digest": "abc",
    "code_version": "0.1",
}
LENGTHS = (5, 1, 8, 3)


def record(index: int, length: int) -> EvidenceRecord:
    rng = np.random.default_rng(index)
    request = RolloutRequest(
        rollout_id=f"r{index}",
        prompt_id=f"p{index // 2}",
        group_id=f"g{index // 2}",
        guided=index % 2 == 0,
        context_position=("system", "user")[index % 2],
        prompt_ids=rng.integers(0, 50_000, 4 + index, dtype=np.int32),
        context_prompt_ids=rng.integers(0, 50_000, 9 + index, dtype=np.int32),
    )
    sample = Sample(
        request=request,
        response_ids=rng.integers(0, 50_000, length, dtype=np.int32),
        sampler_logprobs=-rng.exponential(2, length).astype(np.float32),
        finish_reason=("stop", "length")[index % 2],
        policy_version_min=index,
        policy_version_max=index + 1,
    )
    scored = ScoredSample(
        sample=sample,
        teacher_context_logprobs=-rng.exponential(2, length).astype(np.float32),
        teacher_logprobs=-rng.exponential(2, length).astype(np.float32),
        teacher_version=0,
    )
    return replace(judge(scored, RULE), reward=None if index % 2 else 1.0)


def records() -> list[EvidenceRecord]:
    return [record(index, length) for index, length in enumerate(LENGTHS)]


def table(step: int = 3) -> pa.Table:
    return to_table(records(), {**METADATA, "step": str(step)})


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


# The table


def test_schema_is_the_published_table() -> None:
    assert {field.name: str(field.type) for field in table().schema} == {
        "rollout_id": "string",
        "prompt_id": "string",
        "group_id": "string",
        "guided": "bool",
        "context_position": "dictionary<values=string, indices=int32, ordered=0>",
        "finish_reason": "dictionary<values=string, indices=int32, ordered=0>",
        "policy_version_min": "int32",
        "policy_version_max": "int32",
        "teacher_version": "int32",
        "prompt_ids": "list<item: int32>",
        "context_prompt_ids": "list<item: int32>",
        "response_ids": "list<item: int32>",
        "sampler_logprobs": "list<item: float>",
        "teacher_context_logprobs": "list<item: float>",
        "teacher_logprobs": "list<item: float>",
        "evidence": "list<item: float>",
        "weight": "list<item: float>",
        "mask": "list<item: bool>",
        "reward": "float",
    }


def test_every_field_of_a_record_is_in_its_row() -> None:
    for row, source in zip(table().to_pylist(), records(), strict=True):
        scored, sample, request = source.scored, source.scored.sample, source.scored.sample.request
        assert row == {
            "rollout_id": request.rollout_id,
            "prompt_id": request.prompt_id,
            "group_id": request.group_id,
            "guided": request.guided,
            "context_position": request.context_position,
            "finish_reason": sample.finish_reason,
            "policy_version_min": sample.policy_version_min,
            "policy_version_max": sample.policy_version_max,
            "teacher_version": scored.teacher_version,
            "prompt_ids": request.prompt_ids.tolist(),
            "context_prompt_ids": request.context_prompt_ids.tolist(),
            "response_ids": sample.response_ids.tolist(),
            "sampler_logprobs": sample.sampler_logprobs.tolist(),
            "teacher_context_logprobs": scored.teacher_context_logprobs.tolist(),
            "teacher_logprobs": scored.teacher_logprobs.tolist(),
            "evidence": source.evidence.tolist(),
            "weight": source.weight.tolist(),
            "mask": source.mask.tolist(),
            "reward": source.reward,
        }


def assert_rows_match(found: pa.Table, sources: list[EvidenceRecord]) -> None:
    rows = train_rows(found)
    assert len(rows) == len(sources)
    for row, source in zip(rows, sources, strict=True):
        scored, sample = source.scored, source.scored.sample
        assert (row.rollout_id, row.guided) == (sample.request.rollout_id, sample.request.guided)
        assert same_bits(row.prompt_ids, sample.request.prompt_ids)
        assert same_bits(row.response_ids, sample.response_ids)
        assert row.sampler_logprobs is not None and same_bits(row.sampler_logprobs, sample.sampler_logprobs)
        assert same_bits(row.teacher_context_logprobs, scored.teacher_context_logprobs)
        assert same_bits(row.teacher_logprobs, scored.teacher_logprobs)
        assert same_bits(row.evidence, source.evidence)
        expected = [float(w) if m else 0.0 for w, m in zip(source.weight, source.mask, strict=True)]
        assert same_bits(row.weight, np.array(expected, np.float32))


def test_train_rows_apply_the_mask() -> None:
    assert any(0 < source.mask.sum() < len(source.mask) for source in records())
    assert_rows_match(table(), records())


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 3), (3, 4), (2, 2)])
def test_train_rows_of_a_slice(start: int, stop: int) -> None:
    assert_rows_match(table().slice(start, stop - start), records()[start:stop])


def test_train_rows_of_tables_put_together() -> None:
    assert_rows_match(pa.concat_tables([table().slice(2), table().slice(0, 2)]), records()[2:] + records()[:2])


def test_train_rows_are_views_of_the_table() -> None:
    source = table()
    values = source.column("evidence").chunk(0).values
    start, size = values.buffers()[1].address, values.buffers()[1].size
    for row in train_rows(source):
        assert start <= row.evidence.__array_interface__["data"][0] < start + size
        assert not row.evidence.flags.writeable
        assert not row.weight.flags.writeable


def test_an_empty_table_has_no_rows() -> None:
    empty = to_table([], METADATA)
    assert empty.schema.equals(table().schema)
    assert train_rows(empty) == []


@pytest.mark.parametrize("key", ["run_id", "step", "mask_rule", "model_id", "weights_digest", "code_version"])
def test_missing_metadata_is_named(key: str) -> None:
    metadata = {name: value for name, value in METADATA.items() if name != key}
    with pytest.raises(ValueError, match=rf"^new shard: metadata {key}: found nothing, expected"):
        to_table(records(), metadata)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_version", "2", r"schema_version: found '2', expected '1'"),
        ("step", "-1", r"step: found '-1', expected a whole number >= 0"),
        ("mask_rule", '{"region": "x"}', r"mask_rule: evidence\.region: found 'x', expected one of"),
    ],
)
def test_wrong_metadata_is_named(key: str, value: str, message: str) -> None:
    source = table()
    assert source.schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    changed = source.replace_schema_metadata({**source.schema.metadata, key.encode(): value.encode()})
    with pytest.raises(ValueError, match=rf"^shard-a: metadata {message}"):
        check_table(changed, "shard-a")


def test_a_table_without_metadata_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^shard-a: metadata schema_version: found None, expected '1'$"):
        check_table(table().replace_schema_metadata(None), "shard-a")


@pytest.mark.parametrize("name", COLUMNS)
def test_a_missing_column_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^shard-a: column {name}: found no such column, expected "):
        check_table(table().drop_columns(name), "shard-a")


def test_a_column_of_another_type_is_named() -> None:
    source = table()
    index = source.schema.get_field_index("evidence")
    wide = source.set_column(index, "evidence", source.column("evidence").cast(pa.list_(pa.float64())))
    message = r"^shard-a: column evidence: found list<item: double>, expected list<item: float>$"
    with pytest.raises(ValueError, match=message):
        check_table(wide, "shard-a")


def test_a_column_twice_is_refused() -> None:
    source = table()
    with pytest.raises(ValueError, match=r"^shard-a: column guided: found bool and bool, expected bool$"):
        check_table(source.append_column("guided", source.column("guided")), "shard-a")


def test_further_columns_are_left_alone() -> None:
    source = table()
    check_table(source.append_column("teacher_topk_ids", source.column("response_ids")), "shard-a")


@pytest.mark.parametrize("value", [None, [0.5, None, 0.5]])
def test_nulls_are_refused(value: list[float | None] | None) -> None:
    source = table()
    values = source.column("weight").to_pylist()
    values[3] = value
    index = source.schema.get_field_index("weight")
    holed = source.set_column(index, "weight", pa.array(values, pa.list_(pa.float32())))
    with pytest.raises(ValueError, match=r"^shard-a: column weight: found 1 null values, expected none$"):
        check_table(holed, "shard-a")


@pytest.mark.parametrize(
    "name", ["sampler_logprobs", "teacher_context_logprobs", "teacher_logprobs", "evidence", "weight", "mask"]
)
def test_a_ragged_token_column_is_named(name: str) -> None:
    source = table()
    values = source.column(name).to_pylist()
    values[2] = values[2][:-1]
    index = source.schema.get_field_index(name)
    ragged = source.set_column(index, name, pa.array(values, source.schema.field(name).type))
    message = rf"^shard-a: column {name}: row 2: found 7 tokens, expected 8 as response_ids$"
    with pytest.raises(ValueError, match=message):
        check_table(ragged, "shard-a")


# Columns that a kind of evidence adds


def extended(kind: str, num_wrong: int = 2) -> tuple[list[EvidenceRecord], pa.Table]:
    rule = EvidenceConfig(kind=kind, num_wrong_contexts=num_wrong)
    made = judge_all(scored_step(LENGTHS, num_wrong=num_wrong), [None] * len(LENGTHS), rule, step=3)
    return made, to_table(made, {**METADATA, "mask_rule": rule.to_json()})


EXTRA = {
    "teacher_student": {"student_logprobs": "list<item: float>"},
    "contrastive": {
        "wrong_context_prompt_ids": "list<item: list<item: int32>>",
        "wrong_context_logprobs": "list<item: list<item: float>>",
    },
}


@pytest.mark.parametrize("kind", ["teacher_contrast", *EXTRA])
def test_a_shard_has_the_columns_that_its_kind_reads_and_no_others(kind: str) -> None:
    schema = extended(kind)[1].schema
    added = [field for field in schema if field.name not in COLUMNS]
    assert {field.name: str(field.type) for field in added} == EXTRA.get(kind, {})


@pytest.mark.parametrize("num_wrong", [1, 3])
def test_added_columns_hold_the_records_streams(tmp_path: Path, num_wrong: int) -> None:
    made, source = extended("contrastive", num_wrong)
    info = write_shard(source, str(tmp_path), "a.arrow")
    back = read_shard(info.uri, info)
    for part, sources in ((back, made), (back.slice(1, 2), made[1:3]), (pa.concat_tables([back, back]), made * 2)):
        for name, get in (
            ("wrong_context_prompt_ids", lambda r: r.scored.sample.request.wrong_context_prompt_ids),
            ("wrong_context_logprobs", lambda r: r.scored.wrong_context_logprobs),
        ):
            for found, record in zip(nested_column(part, name), sources, strict=True):
                assert len(found) == num_wrong
                assert all(same_bits(a, b) for a, b in zip(found, get(record), strict=True))
    made, source = extended("teacher_student")
    assert [row["student_logprobs"] for row in source.to_pylist()] == [
        record.scored.student_logprobs.tolist() for record in made if record.scored.student_logprobs is not None
    ]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in EXTRA.items() for name in names])
def test_a_missing_added_column_is_named(kind: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^shard-a: column {name}: found no such column, expected list<item: "):
        check_table(extended(kind)[1].drop_columns(name), "shard-a")


@pytest.mark.parametrize(
    ("kind", "name", "row", "message"),
    [
        ("teacher_student", "student_logprobs", [-1.0] * 7, "row 2: found 7 tokens, expected 8 as response_ids"),
        ("teacher_student", "student_logprobs", [-1.0] * 7 + [None], "found 1 null values, expected none"),
        ("contrastive", "wrong_context_prompt_ids", [[1, 2]], "row 2: found 1 prompts, expected 2"),
        ("contrastive", "wrong_context_logprobs", [[-1.0] * 8] * 3, r"row 2: found \[8, 8, 8\] tokens, expected 2 x 8"),
        (
            "contrastive",
            "wrong_context_logprobs",
            [[-1.0] * 8, [-1.0] * 7],
            r"row 2: found \[8, 7\] tokens, expected 2",
        ),
        ("contrastive", "wrong_context_logprobs", [[-1.0] * 8, None], "found 1 null values, expected none"),
        ("contrastive", "wrong_context_logprobs", [[-1.0] * 8, [None] * 8], "found 8 null values, expected none"),
    ],
)
def test_an_unsound_added_column_is_named(kind: str, name: str, row: list[object], message: str) -> None:
    source = extended(kind)[1]
    values, index = source.column(name).to_pylist(), source.schema.get_field_index(name)
    values[2] = row
    changed = source.set_column(index, name, pa.array(values, source.schema.field(name).type))
    with pytest.raises(ValueError, match=rf"^shard-a: column {name}: {message}"):
        check_table(changed, "shard-a")


# The file


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    info = write_shard(table(), str(tmp_path / "deep" / "shards"), "a.arrow")
    assert info.uri == str(tmp_path / "deep" / "shards" / "a.arrow")
    assert (info.step, info.rows, info.tokens) == (3, len(LENGTHS), sum(LENGTHS))
    back = read_shard(info.uri, info)
    assert back.equals(table(), check_metadata=True)
    assert_rows_match(back, records())
    assert os.listdir(tmp_path / "deep" / "shards") == ["a.arrow"]


edge_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=25)
@given(values=st.lists(st.tuples(edge_floats, st.booleans()), min_size=1, max_size=20))
def test_any_floats_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[tuple[float, bool]]) -> None:
    floats, mask = np.array([v for v, _ in values], np.float32), np.array([m for _, m in values])
    base = record(0, len(values))
    scored = replace(base.scored, teacher_context_logprobs=floats, teacher_logprobs=-floats)
    source = replace(base, scored=scored, evidence=floats[::-1].copy(), mask=mask)
    info = write_shard(to_table([source], METADATA), str(tmp_path_factory.mktemp("shards")), "a.arrow")
    assert_rows_match(read_shard(info.uri, info), [source])


def test_a_local_shard_is_memory_mapped(tmp_path: Path) -> None:
    info = write_shard(table(), str(tmp_path), "a.arrow")
    rows = train_rows(read_shard(info.uri, info))
    maps = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(info.uri)]
    ranges = [tuple(int(end, 16) for end in span.split("-")) for span in maps]
    for row in rows:
        for stream in (row.prompt_ids, row.response_ids, row.evidence, row.teacher_logprobs):
            address = stream.__array_interface__["data"][0]
            assert any(low <= address < high for low, high in ranges)


def test_uri_is_absolute_for_a_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_shard(table(), "shards", "a.arrow").uri == str(tmp_path / "shards" / "a.arrow")


@pytest.mark.parametrize("scheme", ["file", "fsspec+file", "fsspec+memory"])
def test_a_shard_by_uri(tmp_path: Path, scheme: str) -> None:
    if scheme.startswith("fsspec"):
        pytest.importorskip("fsspec")
    info = write_shard(table(), f"{scheme}://{tmp_path}/shards/", "a.arrow")
    assert info.uri == f"{scheme}://{tmp_path}/shards/a.arrow"
    assert info.sha256 == write_shard(table(), str(tmp_path / "plain"), "a.arrow").sha256
    assert_rows_match(read_shard(info.uri, info), records())
    if scheme != "fsspec+memory":
        assert os.listdir(tmp_path / "shards") == ["a.arrow"]


def test_the_options_of_a_uri_stay_behind_the_name() -> None:
    uri = join("s3://bucket/shards/?endpoint_override=host:9000&region=x", "a.arrow")
    assert uri == "s3://bucket/shards/a.arrow?endpoint_override=host:9000&region=x"
    assert pafs.FileSystem.from_uri(uri)[1] == "bucket/shards/a.arrow"


def test_a_shard_written_again_is_replaced_under_its_readers(tmp_path: Path) -> None:
    first = write_shard(table(), str(tmp_path), "a.arrow")
    reader = read_shard(first.uri, first)
    second = write_shard(table(step=4).slice(0, 1), str(tmp_path), "a.arrow")
    assert reader.equals(table())
    assert (second.step, second.rows, second.tokens) == (4, 1, LENGTHS[0])
    assert read_shard(first.uri, second).num_rows == 1


def test_tables_with_different_dictionaries_share_a_shard(tmp_path: Path) -> None:
    parts = [to_table([record(i, 3)], METADATA) for i in range(2)]
    info = write_shard(pa.concat_tables(parts), str(tmp_path), "a.arrow")
    assert read_shard(info.uri, info).column("context_position").to_pylist() == ["system", "user"]


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"^shard name: found '.*', expected a plain file name"):
        write_shard(table(), str(tmp_path), name)


def test_an_unsound_table_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.arrow: column mask: found no such column"):
        write_shard(table().drop_columns("mask"), str(tmp_path), "a.arrow")
    assert os.listdir(tmp_path) == []


def test_one_flipped_bit_is_a_checksum_mismatch(tmp_path: Path) -> None:
    info = write_shard(table(), str(tmp_path), "a.arrow")
    content = bytearray(Path(info.uri).read_bytes())
    content[len(content) // 2] ^= 1
    Path(info.uri).write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.arrow: sha256: found \w+, expected {info.sha256}$"):
        read_shard(info.uri, info)


def test_a_shard_with_any_bit_turned_round_or_cut_at_any_byte_is_refused_by_name(tmp_path: Path) -> None:
    info = write_shard(table(), str(tmp_path), "a.arrow")
    path, content = Path(info.uri), Path(info.uri).read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        for found in (damaged, content[:place]):
            path.unlink()  # a new file: the one before may be mapped
            path.write_bytes(found)
            with pytest.raises(ValueError, match=r"a\.arrow: (sha256: )?found .*, expected "):
                read_shard(info.uri, info)


@pytest.mark.parametrize("field", ["rows", "tokens"])
def test_another_count_than_the_manifest_says(tmp_path: Path, field: str) -> None:
    info = write_shard(table(), str(tmp_path), "a.arrow")
    count = getattr(info, field)
    with pytest.raises(ValueError, match=rf"a\.arrow: {field}: found {count}, expected {count + 1}$"):
        read_shard(info.uri, replace(info, **{field: count + 1}))


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    info = write_shard(table(), str(tmp_path), "a.arrow")
    size = int(os.path.getsize(info.uri) * keep)
    os.truncate(info.uri, size)
    with pytest.raises(ValueError, match=rf"a\.arrow: found {size} bytes .*, expected a whole Arrow IPC file$"):
        read_shard(info.uri)
    with pytest.raises(ValueError, match=r"a\.arrow: sha256: found "):
        read_shard(info.uri, info)


def test_a_missing_file_is_an_os_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.arrow"):
        read_shard(str(tmp_path / "missing.arrow"))


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    root.write_text("not a folder")
    with pytest.raises(OSError, match=r"cannot write shard: .*shards/a\.arrow"):
        write_shard(table(), str(root), "a.arrow")
    with pytest.raises(OSError, match=r"cannot write shard: .*shards/under/a\.arrow"):
        write_shard(table(), str(root / "under"), "a.arrow")
    assert root.read_text() == "not a folder"
    assert os.listdir(tmp_path) == ["shards"]


def test_a_target_that_cannot_be_replaced_leaves_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").mkdir()
    with pytest.raises(OSError, match=r"cannot write shard: .*a\.arrow"):
        write_shard(table(), str(tmp_path), "a.arrow")
    assert os.listdir(tmp_path) == ["a.arrow"]


def big_table() -> pa.Table:
    return to_table([record(0, 20_000)], METADATA)


# Another mask, offline


def reference_recompute(config: EvidenceConfig, flags: tuple[bool, ...]) -> dict[str, float]:
    kept = tokens = rows = 0
    total = 0.0
    for source in records():
        if source.scored.sample.request.guided not in flags:
            continue
        rows += 1
        for c, p in zip(source.scored.teacher_context_logprobs, source.scored.teacher_logprobs, strict=True):
            e = float(np.float32(c) - np.float32(p))
            tokens += 1
            total += e
            kept += {"pos": e > config.tau, "neg": e < -config.tau, "all": True}[config.region]
    return {"kept": kept / tokens, "mean_evidence": total / tokens, "tokens": tokens, "rows": rows}


@pytest.mark.parametrize(
    "config",
    [
        EvidenceConfig(),
        EvidenceConfig(region="neg", tau=0.5),
        EvidenceConfig(region="pos", tau=-math.inf),
        EvidenceConfig(region="all", soft="rlsd"),
    ],
)
def test_recompute_equals_the_loop(tmp_path: Path, config: EvidenceConfig) -> None:
    info = write_shard(table(), str(tmp_path), "a.arrow")
    found = recompute(read_shard(info.uri, info), config)
    for name, flags in {"all": (True, False), "guided": (True,), "plain": (False,)}.items():
        expected = reference_recompute(config, flags)
        assert {key: found[name][key] for key in expected} == pytest.approx(expected, rel=1e-6)
        assert "k1" not in found[name]
        assert (found[name]["mean_abs_weight_shift"] > 0) == (config.soft == "rlsd")


def test_recompute_with_the_written_rule_gives_the_written_masks() -> None:
    kept = sum(int(source.mask.sum()) for source in records())
    assert recompute(table(), RULE)["all"]["kept"] == kept / sum(LENGTHS)


def test_recompute_trusts_the_teacher_columns_only() -> None:
    source = table()
    index = source.schema.get_field_index("evidence")
    zeros = pa.array([[0.0] * length for length in LENGTHS], pa.list_(pa.float32()))
    assert recompute(source.set_column(index, "evidence", zeros), RULE) == recompute(source, RULE)


# Whose place it is


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_place_with_another_runs_shards_is_refused(tmp_path: Path, scheme: str) -> None:
    root = f"{scheme}{tmp_path / 'shards'}"
    check_unshared(root, "r2", "run.storage")  # there is nothing yet
    write_shard(table(step=0), root, shard_name(0))
    check_unshared(root, "r1", "run.storage")  # a run that begins once more
    with pytest.raises(
        ValueError, match=r"^run\.storage: .*step-000000\.arrow: found a shard of the run 'r1', expected"
    ):
        check_unshared(root, "r2", "run.storage")
    (tmp_path / "shards" / shard_name(0)).write_bytes(b"no shard")
    check_unshared(root, "r2", "run.storage")

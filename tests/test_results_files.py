"""Files of scores: exact round trips, clear refusals, nothing half-written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from interp import results
from interp.errors import InterpError, UsageError
from interp.results import io
from interp.results.files import replacing

FORMATS = [".safetensors", ".json", ".nc"]
DTYPES = ["float64", "float32", "float16", "int64", "int32", "int8", "uint8", "bool"]

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def labelled_arrays(draw):
    dims = draw(st.lists(st.sampled_from(["layer", "head", "position", "metric"]), max_size=3, unique=True))
    shape = tuple(draw(st.integers(1, 4)) for _ in dims)
    dtype = draw(st.sampled_from(DTYPES))
    bounds = {"min_value": -(2**50), "max_value": 2**50} if dtype == "int64" else {}
    values = draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(np.dtype(dtype), **bounds)))
    coords = {}
    for dim, size in zip(dims, shape, strict=True):
        labels = st.lists(text, min_size=size, max_size=size)
        if draw(st.booleans()):
            numbers = st.lists(st.integers(-(2**40), 2**40), min_size=size, max_size=size, unique=True)
            unique = st.lists(text, min_size=size, max_size=size, unique=True)
            coords[dim] = np.array(draw(unique if dim == "metric" else numbers))
        if draw(st.booleans()):
            kind = draw(st.sampled_from([object, str]))
            coords[f"{dim}_token"] = (dim, np.array(draw(labels), dtype=kind))
        if draw(st.booleans()):
            coords[f"{dim}_weight"] = (dim, draw(hnp.arrays("float32", size)))
    if draw(st.booleans()):
        coords["example"] = draw(st.integers(0, 9))
    attrs = draw(st.dictionaries(text, json_values, max_size=4))
    return xr.DataArray(values, dims=dims, coords=coords, name=draw(st.none() | text), attrs=attrs)


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scores=labelled_arrays())
def test_a_round_trip_is_exact(tmp_path, suffix, scores):
    path = results.save(scores, tmp_path / f"x{suffix}")
    loaded = results.load(path)
    xr.testing.assert_identical(loaded, scores)
    assert loaded.dims == scores.dims
    assert loaded.dtype == scores.dtype
    assert {n: c.dtype for n, c in loaded.coords.items()} == {n: c.dtype for n, c in scores.coords.items()}
    assert set(loaded.xindexes) == set(scores.xindexes)
    assert json.dumps(loaded.attrs) == json.dumps(scores.attrs), "True must not come back as 1"
    assert [p.name for p in tmp_path.iterdir()] == [f"x{suffix}"]


def example(**attrs):
    return results.scores(
        np.random.default_rng(0).normal(size=(3, 2)).astype("float32"),
        ["layer", "position"],
        {"token": ("position", ["0: <|im_start|>", "1: \n"])},
        **{"units": "logit difference", "higher_is_clean": True, "settings": {"a": None}, **attrs},
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_odd_attributes_and_values_survive(tmp_path, suffix):
    scores = example(clean=float("nan"), corrupted=float("-inf"), seed=np.int64(3), versions={"a": {"b": [1.5, None]}})
    scores[0, 0], scores[0, 1], scores[1, 0] = np.nan, -np.inf, -0.0
    loaded = results.load(results.save(scores, tmp_path / f"x{suffix}"))
    np.testing.assert_array_equal(loaded.values, scores.values)
    assert np.signbit(loaded.values[1, 0])
    assert np.isnan(loaded.attrs["clean"])
    assert loaded.attrs["corrupted"] == float("-inf")
    assert loaded.attrs["seed"] == 3
    assert loaded.attrs["versions"] == {"a": {"b": [1.5, None]}}


def test_a_transposed_view_is_written_in_its_own_order(tmp_path):
    scores = example().transpose("position", "layer")
    for suffix in FORMATS:
        xr.testing.assert_identical(results.load(results.save(scores, tmp_path / f"x{suffix}")), scores)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_dimension_whose_labels_have_no_index_stays_without(tmp_path, suffix):
    scores = example().drop_indexes("layer")
    loaded = results.load(results.save(scores, tmp_path / f"x{suffix}"))
    assert set(loaded.xindexes) == {"position"}
    assert loaded["layer"].values.tolist() == [0, 1, 2]


def test_safetensors_is_the_format_without_a_suffix(tmp_path):
    path = results.save(example(), tmp_path / "scores")
    assert path.name == "scores.safetensors"
    xr.testing.assert_identical(results.load(tmp_path / "scores"), example())


def test_json_is_strict_and_the_same_as_to_json(tmp_path):
    scores = example(clean=float("nan"))
    scores[0, 0] = np.nan
    text = results.save(scores, tmp_path / "x.json").read_text(encoding="utf-8")

    def refuse(token):
        raise AssertionError(token)

    document = json.loads(text, parse_constant=refuse)
    assert document["dims"] == ["layer", "position"]
    assert document["data"][0][0] is None
    assert text == results.to_json(scores) + "\n"


def test_netcdf_reads_in_other_programs(tmp_path):
    with xr.open_dataset(results.save(example(), tmp_path / "x.nc"), engine="scipy") as file:
        np.testing.assert_array_equal(file["scores"].values, example().values)
        assert file["token"].values.tolist() == ["0: <|im_start|>", "1: \n"]
        assert file["layer"].values.tolist() == [0, 1, 2]
        assert file["scores"].attrs["units"] == "logit difference"


def test_csv_lists_every_cell_and_is_not_loaded(tmp_path):
    import pandas as pd

    path = results.save(example(), tmp_path / "x.csv")
    pd.testing.assert_frame_equal(
        pd.read_csv(path, dtype={"value": "float32"}), results.to_frame(example()), check_dtype=False
    )
    with pytest.raises(UsageError, match="neither the attributes nor the types"):
        results.load(path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 0.9])
def test_a_file_cut_short_gives_one_error_with_its_path(tmp_path, suffix, keep):
    path = results.save(example(), tmp_path / f"cut{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InterpError, match=f"cut{suffix}"):
        results.load(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_foreign_or_missing_file_is_named(tmp_path, suffix):
    path = tmp_path / f"other{suffix}"
    with pytest.raises(InterpError, match=rf"other{suffix} does not exist"):
        results.load(path)
    if suffix == ".json":
        path.write_text('{"a": 1}')
    elif suffix == ".nc":
        xr.Dataset({"t": ("x", [1.0])}).to_netcdf(path, engine="scipy")
    else:
        from safetensors.numpy import save_file

        save_file({"w": np.zeros(3)}, path)
    with pytest.raises(InterpError, match=rf"other{suffix} does not (hold scores|say what it is)"):
        results.load(path)
    path.write_bytes(b"\x00\xffnot a file of any kind" * 9)
    with pytest.raises(InterpError, match=rf"other{suffix} is cut short, damaged or "):
        results.load(path)


def test_a_header_that_disagrees_with_the_values_is_refused(tmp_path):
    path = results.save(example(), tmp_path / "x.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    document["data"] = document["data"][:2]
    path.write_text(json.dumps(document))
    with pytest.raises(InterpError, match="damaged"):
        results.load(path)


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (example(settings=object()), "attribute 'settings' is a object"),
        (example().assign_coords(t=("layer", np.array(["2020", "2021", "2022"], "datetime64[Y]"))), "coordinate 't'"),
        (example().astype(complex), "dtype complex128"),
        (np.zeros(3), "ndarray"),
    ],
)
def test_what_a_file_cannot_hold_is_named_before_anything_is_written(tmp_path, scores, says):
    for suffix in FORMATS:
        with pytest.raises(UsageError, match=says):
            results.save(scores, tmp_path / f"x{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_unknown_suffixes_suggest_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="json"):
        results.save(example(), tmp_path / "x.jsn")
    (tmp_path / "x.jsn").touch()
    with pytest.raises(UsageError, match="file format"):
        results.load(tmp_path / "x.jsn")


def test_integers_that_netcdf_cannot_hold_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"2\*\*53"):
        results.save(xr.DataArray([2**60 + 1], dims="layer"), tmp_path / "x.nc")


@pytest.mark.parametrize("suffix", [*FORMATS, ".csv"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, suffix, stop):
    path = results.save(example(), tmp_path / f"x{suffix}")
    before = path.read_bytes()
    inner = io._WRITERS[suffix]

    def broken(scores, header, aside):
        inner(scores, header, aside)
        raise stop("stopped")

    monkeypatch.setitem(io._WRITERS, suffix, broken)
    with pytest.raises(stop):
        results.save(example() * 2, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InterpError, match="could not write"), replacing(tmp_path / "file" / "x.json"):
        pass
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InterpError, match=r"folder\.json"):
        results.save(example(), tmp_path / "folder.json")


def test_missing_folders_are_made(tmp_path):
    assert results.save(example(), tmp_path / "a" / "b" / "x.json").is_file()

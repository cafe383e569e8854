"""Names are known before torch is imported, and packages offer what they say."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import interp
from interp._lazy import Registry
from interp.attention.detectors import DETECTORS
from interp.features.architectures.registry import ARCHITECTURES, OF_SEVERAL_PLACES
from interp.models._hub import official_names

HEAVY = ("torch", "transformers", "transformer_lens", "xarray", "pandas", "scipy", "plotly", "matplotlib")

LIGHT = f"""
import sys
import interp
import interp.cli
from interp.attention.detectors import known
from interp.circuits.methods import METHODS
from interp.efficiency import method
from interp.engine.rule_sets import RULE_SETS
from interp.features import ARCHITECTURES
from interp.graph import site_of
from interp.models import models, named
from interp.papers import papers
from interp.patching.methods import METHODS
from interp.tasks import CORPORA, METRICS, names
named("gpt2"), list(ARCHITECTURES), names(), papers()
print([name for name in {HEAVY} if name in sys.modules])
"""


def test_all_registries_of_names_are_read_without_torch():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PACKAGES = [name for _, name, is_package in pkgutil.walk_packages(interp.__path__, "interp.") if is_package]


@pytest.mark.parametrize("name", ["interp", *PACKAGES])
def test_a_package_gives_everything_that_it_offers(name):
    package = importlib.import_module(name)
    for offered in getattr(package, "__all__", ()):
        assert getattr(package, offered) is not None
        assert offered in dir(package)


def test_importing_a_module_does_not_hide_the_function_of_its_name():
    code = "import interp.attention.heads, interp.circuits.discover as d, interp; "
    code += "print(callable(interp.attention.heads), callable(interp.circuits.discover), callable(d))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]


def test_modules_of_a_package_are_its_attributes_without_an_import_of_their_own():
    code = "import interp; print(interp.efficiency.registry.METHODS['h2o'].family, interp.features.geometry.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["kv_cache", "interp.features.geometry"]
    assert isinstance(interp.efficiency.kv_cache, ModuleType)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = interp.efficiency.nothing


@pytest.mark.parametrize("registry", [DETECTORS, ARCHITECTURES, OF_SEVERAL_PLACES])
def test_a_registry_calls_things_by_their_own_names(registry: Registry):
    assert [getattr(thing, "name", None) or thing.architecture for thing in registry.values()] == list(registry)


def test_the_names_read_from_transformer_lens_are_those_that_it_resolves():
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES, get_official_model_name

    names = official_names()
    every = {alias for name in OFFICIAL_MODEL_NAMES for alias in (name, *MODEL_ALIASES.get(name, ()))}
    assert {name.lower() for name in every} == names.keys()
    assert all(names[name.lower()] == get_official_model_name(name) for name in every)

"""Every public name of pycytominer 1.7.1 is a name of cytominer_tools, but for a closed list."""

import importlib
import inspect
import pkgutil
import warnings

import pandas as pd
import pytest

import cytominer_tools

LEFT_OUT = {
    # commands of pycytominer are commands of deepprofile
    "cli": {"PycytominerCLI", "PycytominerCLIError", "main"},
    # types for its own annotations
    "cyto_utils.anndata_utils": {"Type_AnnDataLike"},
    "operations.transform": {"RobustMAD_type", "Spherize_type"},
    # values that the functions beside them return
    "cyto_utils.blocklist": {"DEFAULT_BLOCKLIST_NAME", "blocklists_file"},
    "cyto_utils.cells": {"default_compartments", "default_linking_cols"},
    "cyto_utils.output": {"COMPRESS_OPTIONS"},
    "cyto_utils.util": {"default_metadata_file"},
}


def public_names():
    """Module to the names that are defined in it, and not imported into it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = importlib.import_module("pycytominer")
        found = {}
        for info in pkgutil.walk_packages(peer.__path__, "pycytominer."):
            if info.name.endswith("_cmd"):  # scripts
                continue
            module = importlib.import_module(info.name)
            found[info.name.removeprefix("pycytominer.")] = {
                name
                for name, value in vars(module).items()
                if not name.startswith("_")
                and not inspect.ismodule(value)
                and getattr(value, "__module__", info.name) == info.name
            }
    return found


def test_nothing_is_missing():
    found = public_names()
    assert {"aggregate", "cyto_utils.cells", "operations.transform"} <= set(found)
    assert sum(map(len, found.values())) > 80
    mine = set(dir(cytominer_tools))
    missing = {module: names - mine for module, names in found.items() if names - mine}
    assert missing == LEFT_OUT


@pytest.mark.parametrize("order", [["x", "y"], ["y", "x"]])
def test_the_one_of_a_pair_that_correlates_more(order, peer):
    row, places = pd.Series({"pair_a": "x", "pair_b": "y", "correlation": 0.95}), pd.Index(order)
    found = cytominer_tools.determine_high_cor_pair(row, places)
    assert found == order[1]
    from pycytominer.operations.correlation_threshold import determine_high_cor_pair as theirs

    assert found == theirs(row, places)


def test_what_is_taken_for_anndata():
    class Three:
        X, obs, var = 1, 2, 3

    assert isinstance(Three(), cytominer_tools.AnnDataLike)
    assert not isinstance(pd.DataFrame(), cytominer_tools.AnnDataLike)

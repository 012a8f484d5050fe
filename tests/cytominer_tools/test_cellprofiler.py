import pandas as pd
import pytest

from cytominer_tools import (
    Blocklist,
    assert_linking_cols_complete,
    check_compartments,
    get_blocklist_features,
    get_default_linking_cols,
    infer_cp_features,
    label_compartment,
    load_known_metadata_dictionary,
    provide_linking_cols_feature_name_update,
)
from cytominer_tools.errors import InputError, ProfileWarning


def table():
    return pd.DataFrame(
        {
            "Metadata_Well": ["A01"],
            "Cells_a": [1.0],
            "Cytoplasm_text": ["x"],
            "Cells_nested": [[1, 2]],
            "Image_b": [2.0],
            "Image_name": ["a.tif"],
            "Barcode_c": [3],
        }
    )


def test_features_are_chosen_as_pycytominer_does(peer):
    for options in ({}, {"image_features": True}, {"metadata": True}, {"compartments": "Barcode"}):
        assert infer_cp_features(table(), **options) == peer.infer_cp_features(table(), **options)
    assert infer_cp_features(table()) == ["Cells_a", "Cytoplasm_text"]
    with pytest.raises(InputError, match="no features or metadata found: no column starts with Mito"):
        infer_cp_features(table(), "Mito")


def test_labels():
    assert label_compartment(["x", "y"], "cells", ["y"]) == ["Cells_x", "Metadata_y"]
    assert label_compartment(["x"], "nuclei", []) == ["Nuclei_x"]
    with pytest.raises(InputError, match="provide valid compartment, one of Cells, Cytoplasm, Nuclei, Image, Barcode"):
        label_compartment(["x"], "mito", [])


def test_tables_and_links(peer, tmp_path):
    assert load_known_metadata_dictionary() == peer.load_known_metadata_dictionary()
    path = tmp_path / "a.txt"
    path.write_text("compartment\tfeature\nCells\ta\ncells\tb\n")
    assert load_known_metadata_dictionary(path) == {"cells": ["a", "b"]}
    assert get_default_linking_cols() == peer.get_default_linking_cols()
    assert provide_linking_cols_feature_name_update() == peer.provide_linking_cols_feature_name_update()
    assert_linking_cols_complete()
    path.write_text("compartment\tfeature\nCells a\n")
    with pytest.raises(InputError, match="expected compartment, tab, feature; got 'Cells a'"):
        load_known_metadata_dictionary(path)
    with pytest.warns(ProfileWarning, match="Non-canonical compartment detected: mito"):
        check_compartments(["cells", "mito"])


@pytest.mark.parametrize(
    ("links", "compartments", "words"),
    [
        ([], "default", "linking_cols must be a dictionary"),
        ("default", "cells", "compartments must be a list"),
        ("default", ["cells", "nuclei"], "cytoplasm compartment not found"),
        ("default", ["cells", "nuclei", "cytoplasm", "mito"], "mito is missing"),
        ({"cells": {"nuclei": "a"}}, ["cells", "nuclei"], "Missing column identifier between cells-nuclei"),
    ],
)
def test_links_that_do_not_fit(links, compartments, words):
    with pytest.raises(InputError, match=words):
        assert_linking_cols_complete(links, compartments)


# --- blocklists
def test_blocklist_of_names_and_files(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("qc: [Cells_a, 12]\nother: [x]\n")
    found = Blocklist(["qc", "other"], ["Cells_b"], path)
    assert list(found) == found.to_list() == ["Cells_a", "12", "x", "Cells_b"]
    assert len(found) == 4
    assert get_blocklist_features(found, population_df=table()) == ["Cells_a"]
    assert get_blocklist_features("Cells_z") == ["Cells_z"]
    assert len(get_blocklist_features()) == len(set(get_blocklist_features())) == 55
    with pytest.raises(InputError, match=r"Unknown blocklist name 'x'\. Choose one of: default"):
        Blocklist("x")
    path.write_text("- a\n")
    with pytest.raises(InputError, match="must be a mapping of blocklist names to feature lists"):
        Blocklist("qc", blocklists_file=path)
    (tmp_path / "b.csv").write_text("blocklist\nCells_a\n")
    with pytest.warns(DeprecationWarning, match="blocklist_file is deprecated"):
        assert get_blocklist_features(blocklist_file=tmp_path / "b.csv") == ["Cells_a"]
    for wrong in ({"blocklist_name": 3}, {"features_to_block": "Cells_a"}):
        with pytest.raises(TypeError):
            Blocklist(**wrong)

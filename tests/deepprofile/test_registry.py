from importlib.metadata import EntryPoint, EntryPoints, entry_points

import pytest

from cytominer_tools.errors import InputError
from deepprofile import registry

GROUP = "deepprofile.locators"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


def test_an_installed_plugin_is_found_by_name():
    assert registry.load(GROUP, "nuclei").__module__ == "plugins.locators.nuclei"
    assert "nuclei" in registry.names(GROUP)
    assert registry.package(GROUP, "nuclei").startswith("deepprofile 0.")


@pytest.mark.parametrize("group", registry.GROUPS)
def test_every_installed_plugin_is_known_and_can_be_called(group):
    for entry in entry_points(group=group):
        assert entry.name in registry.names(group)
        assert callable(registry.load(group, entry.name))


def test_a_registered_one_comes_first_and_for_this_process():
    def mine():
        pass

    registry.register(GROUP, "mine", mine)
    registry.register(GROUP, "nuclei", mine)
    assert registry.load(GROUP, "mine") is mine
    assert registry.load(GROUP, "nuclei") is mine
    assert registry.names(GROUP).count("nuclei") == 1
    assert registry.names(GROUP) == sorted(registry.names(GROUP))
    assert registry.package(GROUP, "nuclei") == registry.package(GROUP, "mine") == "this process"
    with pytest.raises(InputError, match=r"no deepprofile\.networks plugin is called 'mine'"):
        registry.load("deepprofile.networks", "mine")


def test_an_unknown_name_lists_the_known_ones():
    registry.register(GROUP, "mine", print)
    with pytest.raises(
        InputError, match=r"no deepprofile\.locators plugin is called 'cellpose'; installed: .*mine.*nuclei"
    ):
        registry.load(GROUP, "cellpose")


def test_no_plugin_at_all(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints())
    with pytest.raises(InputError, match="installed: none"):
        registry.load(GROUP, "nuclei")


def test_two_claimants_are_an_error_and_no_race(monkeypatch):
    two = EntryPoints(EntryPoint("a", f"{package}:locate", GROUP) for package in ("one", "two"))
    monkeypatch.setattr(registry, "entry_points", lambda group: two)
    with pytest.raises(InputError, match="'a' is claimed by one:locate, two:locate; uninstall all but one"):
        registry.load(GROUP, "a")
    assert registry.names(GROUP) == ["a"]
    registry.register(GROUP, "a", print)
    assert registry.load(GROUP, "a") is print


def test_an_unknown_group():
    for call in (registry.names, lambda g: registry.load(g, "x"), lambda g: registry.register(g, "x", print)):
        with pytest.raises(
            InputError, match=r"no plugin group 'deepprofile\.models'; the groups are deepprofile\.networks"
        ):
            call("deepprofile.models")


def test_a_plugin_that_cannot_be_loaded_does_not_hide_the_others(monkeypatch):
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda group, name: 1 / 0 if name == "small_cnn" else load(group, name))
    rows = {row["name"]: row for row in registry.describe()}
    assert rows["small_cnn"]["about"] == "cannot be loaded: division by zero"
    assert rows["nuclei"]["about"].startswith("Find nuclei")

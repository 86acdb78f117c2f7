"""Which files of tests start first: those that take longest, so that no worker ends alone with one."""

LONGEST = ("test_readme", "test_recipes", "test_interruption", "test_deployed_run", "test_registry_faults",
           "test_resume", "test_drivers", "test_stack", "test_registry_server", "test_distributed")


def pytest_collection_modifyitems(items) -> None:
    """For pytest-xdist's loadfile with --no-loadscope-reorder, which hands files out as they come."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))

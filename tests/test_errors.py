from __future__ import annotations

from embedx import errors
from embedx.errors import ConfigError, EmbedxError, unknown


def test_the_tree_at_the_top_of_the_file_names_every_error_with_its_exit_code() -> None:
    assert errors.__doc__ is not None
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    for name, error in classes.items():
        if issubclass(error, EmbedxError):
            line = next(line for line in errors.__doc__.splitlines() if name in line)
            assert f" {error.exit_code} " in line, name


def test_a_config_error_tells_all_faults() -> None:
    error = ConfigError(["one", "two"])
    assert error.faults == ["one", "two"] and str(error) == "one\ntwo"
    ConfigError.check([])


def test_unknown_names_the_nearest_or_lists_a_few_or_counts_many() -> None:
    assert "did you mean resnet50?" in unknown("backbone", "resnet5", ["resnet50", "vit"])
    assert "valid: a, b" in unknown("thing", "zzz", ["b", "a"])
    assert "valid: none" in unknown("thing", "zzz", [])
    assert "there are 20 valid ones" in unknown("thing", "zzz", [f"name{i}" for i in range(20)])

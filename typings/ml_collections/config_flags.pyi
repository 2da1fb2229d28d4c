from typing import Any

from absl import flags

def register_flag_parser_for_type(field_type: Any, parser: flags.ArgumentParser) -> Any: ...
def DEFINE_config_file(
    name: str,
    default: str | None = None,
    help_string: str = ...,
    flag_values: flags.FlagValues = ...,
    *,
    sys_argv: list[str] | None = None,
) -> flags.FlagHolder: ...
def get_config_filename(config_flag: Any) -> str: ...

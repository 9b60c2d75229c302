"""What a setting must be, as one line."""


def require(holds: bool, key: str, found: object, expected: str) -> None:
    """ValueError "KEY: found ..., expected ..." unless it `holds`; key: as a recipe has it, with its table."""
    if not holds:
        raise ValueError(f"{key}: found {found!r}, expected {expected}")

"""What a setting must be, and what a library's error says, as one line."""


def require(holds: bool, key: str, found: object, expected: str) -> None:
    """ValueError "KEY: found ..., expected ..." unless it `holds`; key: as a recipe has it, with its table."""
    if not holds:
        raise ValueError(f"{key}: found {found!r}, expected {expected}")


def first_line(error: BaseException) -> str:
    """Of what an error says; its type where it says nothing."""
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__

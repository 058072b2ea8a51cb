"""Text from files, made fit to be shown."""


def escape(text: str) -> str:
    """The text with every character that is not printable as an escape sequence, as `repr` writes it."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def shorten(text: str) -> str:
    """The text, cut to 100 characters, for a message."""
    return text if len(text) <= 100 else text[:99] + "…"


def one_line(problem: object, longest: int = 1000) -> str:
    """What is wrong with a file, whose content it may repeat: escaped, and cut to `longest` characters."""
    text = escape(str(problem))
    return text if len(text) <= longest else text[: longest - 1] + "…"

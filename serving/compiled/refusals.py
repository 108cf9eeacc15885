"""How the compiled form says that something is not for it. Neither ever leaves this package."""


class CannotCompile(Exception):
    """A pipeline has a part that is not understood. Its text says which, for a person."""


class AskNative(Exception):
    """These rows are scikit-learn's to answer or to refuse."""

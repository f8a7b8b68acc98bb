"""The errors that jaxdist raises on purpose, each with an end of its own; any other keeps its traceback."""


class Refused(ValueError):
    """What was asked for can not be; the message names the value, what was expected, what to write.

    jaxdist raises it on purpose, before it compiles or writes anything, and nothing is lost by it. A command
    prints its message as one line and ends with exit code 2. Every other exception, ours or a user's, keeps
    its traceback. It is a `ValueError`, so that code which catches those goes on as before.

    >>> import optax, jaxdist as jd
    >>> try:
    ...     jd.execute(optax.sgd(0.1), lambda params, batch, key: (0.0, {}), workers=2)
    ... except jd.Refused as error:
    ...     print(str(error).split(",")[0])
    jd.execute was given an optax rule
    """


class NothingIntact(Refused):
    """There are checkpoints, and none of them can be believed."""


class NotFinite(FloatingPointError):
    """A value of a run is NaN or infinite; the message names the step, the worker and the leaf."""


class NoRoom(OSError):
    """The disk, or the store, is full or gone: what was to be written is not there."""


class NoMemory(MemoryError):
    """A device has less memory than a step needs; the message names the ways out."""


Refused.__module__ = "jaxdist"  # a traceback names it as users write it: jaxdist.Refused

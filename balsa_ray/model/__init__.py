"""The balsa model in transformers: configuration, processor, connector and the model itself."""


def register() -> None:
    """Makes transformers' Auto classes know the balsa classes, with no remote code. Safe to repeat.

    Each module registers its own class when it is imported; this imports them all.
    """
    import balsa_ray.model.modeling
    import balsa_ray.model.processing  # noqa: F401

"""Networks: `build(*, channels, size, classes=None, **options) -> keras.Model`."""

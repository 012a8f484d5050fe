"""Cell locators: `locate(image, *, channels, pixel_size_um, **params) -> (table, labels)`."""

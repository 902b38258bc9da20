"""The backend `numpy`: gradients by hand, steps recorded once and replayed in place."""

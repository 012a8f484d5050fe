"""Networks, activity heads and cell locators, each found by its entry point."""

"""Facts that a published model knows, and how a run asks for them: capitals of countries, and what lies beside them."""

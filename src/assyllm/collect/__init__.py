"""Raw runs become the result tables. No torch."""

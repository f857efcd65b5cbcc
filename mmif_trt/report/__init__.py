"""Pictures before tables: one page that shows what methods did to every case, and how they score."""

"""The page people look at: its documents, its sessions, and one HTML file that asks no other address."""

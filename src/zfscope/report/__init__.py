"""The paper's numbers beside ours: reading runs, ledger, claims, pages."""

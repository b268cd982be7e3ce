"""Counterexample search: methods that look for inputs on which a claim fails. Importing registers them."""

import importlib
import pkgutil

from assay.evidence.search.base import SEARCHES, Found, Hunt, SearchMethod, register_search, searches_for

__all__ = ["SEARCHES", "Found", "Hunt", "SearchMethod", "register_search", "searches_for"]

for _module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    importlib.import_module(f"{__name__}.{_module.name}")

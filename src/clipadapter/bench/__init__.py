"""Measuring: the few-shot protocol, suites, records, tables and plots. The test part is opened by `score` alone.

- A suite says what is to be measured: a TOML file with heads, data sets, shots and seeds.
- A fit is one head fitted once to one draw of shots; it is the unit of work of a launcher.
- A run is the measurement of one fit on one test part.
- A record is a run as it is stored, under a key that is a hash of everything that determines its metrics.
- An entry is one planned record of a suite; the plan of a suite is the list of its entries.
- A study is a suite with its entries and the records that exist.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

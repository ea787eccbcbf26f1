"""What holds for every test: no test is timed, as the machine may be busy with other things."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

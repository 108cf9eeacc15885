"""Item 2: the supervisor is killed, alone or with its guardian. Nothing is left, and the next start works."""

import http.client
import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Collection
from contextlib import closing
from urllib.parse import urlsplit

import psutil

from benchmarks.kills.rows import note_version, read_route_state, write_first_routes
from benchmarks.kills.verdict import Verdict, spread
from benchmarks.stack import PARTS, Stack, fresh_stack, is_alive
from benchmarks.waiting import wait_for

# What is asked of the guardian, and the guard against waiting for ever beyond it.
_GONE_WITHIN, _GONE_GUARD = 10.0, 60.0
_MODEL = "survivor"

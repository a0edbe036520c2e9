#!/usr/bin/env python3
"""Counts the words of a message into $OUT/<message id>.json. Run for each message by `mayfly-worker exec`."""

import json
import os
import sys
from urllib.parse import quote

DATA_ERROR = 65  # to the dead-letter queue; every other failure is tried again

message_id = os.environ["MAYFLY_MESSAGE_ID"]
with open(os.environ["MAYFLY_HEADERS_FILE"], encoding="utf-8") as file:
    headers = json.load(file)

try:
    text = sys.stdin.buffer.read().decode()
except UnicodeDecodeError as error:
    print(f"no text: {error}", file=sys.stderr)
    sys.exit(DATA_ERROR)

result = {"words": len(text.split()), "tenant": headers.get("tenant")}

# A message may come twice: its result has its name, and appears whole or not at all.
path = os.path.join(os.environ["OUT"], f"{quote(message_id, safe='')}.json")
with open(f"{path}.part", "w", encoding="utf-8") as file:
    json.dump(result, file)
os.replace(f"{path}.part", path)

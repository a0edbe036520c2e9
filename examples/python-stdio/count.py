#!/usr/bin/env python3
"""Counts words as ../python-exec does, in one process for all messages: for what is slow to start.
Run once by `mayfly-worker stdio`."""

import json
import os
import sys
import time
from urllib.parse import quote

answers, sys.stdout = sys.stdout, sys.stderr  # whatever prints goes to the log, answers alone to the worker


def say(**answer):
    print(json.dumps(answer), file=answers, flush=True)


def count(message):
    if "body_base64" in message:
        return {"outcome": "dead_letter", "reason": "no text"}
    result = {"words": len(message["body"].split()), "tenant": message["headers"].get("tenant")}
    path = os.path.join(os.environ["OUT"], f"{quote(message['message_id'], safe='')}.json")
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump(result, file)
    os.replace(f"{path}.part", path)
    return {"outcome": "done"}


time.sleep(float(os.environ.get("LOADING", "3")))  # a large model, say
say(ready=True)
for line in sys.stdin:
    message = json.loads(line)
    try:
        answer = count(message)
    except OSError as error:
        answer = {"outcome": "retry", "reason": str(error), "after": "30s"}
    say(id=message["id"], **answer)

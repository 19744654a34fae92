"""Loaded at the start of each interpreter that has this folder in PYTHONPATH: a stage reaches its teacher by the test's proxy."""

import os

proxy, teacher = os.environ.get("KD_TEST_PROXY"), os.environ.get("KD_TEACHER_URL")
if proxy and teacher and not teacher.startswith(proxy):
    os.environ["KD_TEACHER_URL"] = f"{proxy}/{teacher.rpartition(':')[2]}/v1"

"""The main module of vLLM's process: vLLM's own server, unchanged."""

from __future__ import annotations

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()

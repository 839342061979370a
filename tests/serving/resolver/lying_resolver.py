"""In a replica of the tests: names are resolved by a table, and connections to made-up public addresses stay here.

`NAMES_OF_TESTS` names a JSON file: `names`, name → answers, one after the other, the last one for ever; `routes`,
address → port of this machine; `log`, a file to which each address is written that a connection is made to.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import connector

from balsa_ray.serving.replica import LocalEngine

table = json.loads(Path(os.environ["NAMES_OF_TESTS"]).read_text())
connect = connector.aiohappyeyeballs.start_connection


async def resolve(self: Any, host: str, port: int = 0, family: Any = None) -> list[dict[str, Any]]:
    answers = table["names"][host]
    addresses = answers.pop(0) if len(answers) > 1 else answers[0]
    return [
        {
            "hostname": host,
            "host": address,
            "port": port,
            "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
            "proto": 0,
            "flags": 0,
        }
        for address in addresses
    ]


async def start_connection(addr_infos: Any, **others: Any) -> socket.socket:
    routed = []
    with Path(table["log"]).open("a") as file:
        for *kind, (address, port, *rest) in addr_infos:
            file.write(f"{address} {port}\n")
            route = table["routes"].get(address)
            routed.append((*kind, ("127.0.0.1", route) if route else (address, port, *rest)))
    return await connect(addr_infos=routed, **others)


class LyingEngine(LocalEngine):
    """The engine, with names that lie."""

    async def start(self) -> None:
        aiohttp.ThreadedResolver.resolve = resolve
        connector.aiohappyeyeballs.start_connection = start_connection
        await super().start()

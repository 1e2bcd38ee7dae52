"""Load a functions app and call it through Microsoft's own runtime, as the Functions host does.

    python worker.py FOLDER < calls.json

Reads a list of calls from stdin and prints what was loaded and answered, as JSON in the last line.
It is a program of its own because the runtime keeps one app for the life of its process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import uuid
from importlib.metadata import distribution
from types import SimpleNamespace
from typing import Any

import azure_functions_runtime as runtime
from azure_functions_runtime.bindings.datumdef import Datum
from azure_functions_runtime.native_invocation import invocation_request_native

# The wheel has its generated messages in its tests.
sys.path.append(str(distribution("azure-functions-runtime-v1").locate_file("tests")))

import protos  # type: ignore[import-not-found]  # found on the path that was added
from protos import FunctionRpc_pb2 as rpc


def message(**content: Any) -> SimpleNamespace:
    """Wrap a request of the host the way that the worker in Azure hands it to the runtime."""
    return SimpleNamespace(
        request=protos.StreamingMessage(**content),
        properties={"protos": protos, "host": "127.0.0.1"},
    )


def checked(response: Any) -> Any:
    """Return a response that reports success; end with the reported error otherwise."""
    if response.result.status != protos.StatusResult.Success:
        sys.exit(response.result.exception.message + response.result.exception.stack_trace)
    return response


async def load(folder: str) -> dict[str, Any]:
    """Load the app of a folder and return the functions' metadata by name."""
    init = protos.WorkerInitRequest(host_version="4.0", function_app_directory=folder)
    checked(await runtime.worker_init_request(message(worker_init_request=init)))
    request = protos.FunctionsMetadataRequest(function_app_directory=folder)
    metadata = checked(
        await runtime.functions_metadata_request(message(functions_metadata_request=request))
    )
    functions = {each.name: each for each in metadata.function_metadata_results}
    for each in functions.values():
        request = protos.FunctionLoadRequest(function_id=each.function_id, metadata=each)
        checked(await runtime.function_load_request(message(function_load_request=request)))
    return functions


async def invoke(function: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Call a function, with an HTTP request or for a timer, and return what it answered."""
    trigger = next(
        binding
        for binding in map(json.loads, function.raw_bindings)
        if binding["type"].endswith("Trigger")
    )
    if trigger["type"] == "httpTrigger":
        body = protos.TypedData(bytes=call.pop("body", "").encode())
        data = protos.TypedData(http=protos.RpcHttp(**call, body=body))
    else:
        data = protos.TypedData(json=json.dumps({"IsPastDue": False}))
    request = protos.InvocationRequest(
        invocation_id=str(uuid.uuid4()),
        function_id=function.function_id,
        input_data=[protos.ParameterBinding(name=trigger["name"], data=data)],
        trace_context=rpc.RpcTraceContext(trace_parent=f"00-{'a' * 32}-{'b' * 16}-01"),
    )
    response = await runtime.invocation_request(message(invocation_request=request))
    if response.result.status != protos.StatusResult.Success:
        return {"error": response.result.exception.message}
    http = response.return_value.http
    return {
        "status": int(http.status_code or 0),
        "headers": dict(http.headers),
        "body": http.body.bytes.decode(),
    }


class HostLog(logging.Handler):
    """Takes and drops records as the Functions host does.

    Each is sent with the id of the invocation that the runtime says it belongs to, and taken only
    while that invocation runs: GrpcWorkerChannel.Log in Azure/azure-functions-host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running: set[str] = set()
        self.taken: list[str] = []
        self.dropped: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record, or drop it."""
        reaches = runtime.invocation_id_cv.get() in self.running
        (self.taken if reaches else self.dropped).append(record.getMessage())


async def invoke_and_listen(function: Any, log: HostLog) -> None:
    """Call a function that takes a request, as the worker that is written in Rust does."""
    invocation_id = str(uuid.uuid4())
    log.running.add(invocation_id)
    empty = Datum("", "string")
    http = {"method": Datum("GET", "string"), "url": Datum("http://localhost/", "string")}
    http |= {name: {} for name in ("headers", "query", "params")} | {"body": empty}
    # In its own task, as in the worker, which calls `run_coroutine_threadsafe`.
    await asyncio.create_task(
        invocation_request_native(
            invocation_id, function.function_id, [("req", Datum(http, "http"))], {}
        )
    )
    log.running.remove(invocation_id)


async def main(folder: str) -> None:
    """Load the app, make the calls in turn, print what came of it."""
    sys.path.insert(0, folder)
    runtime.start_threadpool_executor()
    functions = await load(folder)
    answers = []
    log = HostLog()
    for call in json.load(sys.stdin):
        function = functions[call.pop("function")]
        if "listen_seconds" in call:
            logging.basicConfig(level=logging.INFO, handlers=[log])
            await invoke_and_listen(function, log)
            await asyncio.sleep(call["listen_seconds"])
        else:
            answers.append(await invoke(function, call))
    bindings = {name: list(map(json.loads, each.raw_bindings)) for name, each in functions.items()}
    log_lines = {"taken": log.taken, "dropped": log.dropped}
    print(json.dumps({"functions": bindings, "answers": answers, **log_lines}))  # noqa: T201 - its output


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

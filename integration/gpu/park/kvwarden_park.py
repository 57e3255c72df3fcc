"""Gives vLLM 0.26 the `POST /release_kv_cache_memory` of later versions, which want a newer torch.

It follows theirs line by line: a completed pause, caches reset, the pages of the KV cache unmapped
while weights stay. vLLM's own `/wake_up?tags=kv_cache` maps them again and resumes the scheduler.
vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`); where it has the
endpoint itself nothing is done.
"""


def register():
    from vllm.v1.engine.core import EngineCore

    if hasattr(EngineCore, "release_kv_cache_memory"):
        return
    EngineCore.release_kv_cache_memory = release_kv_cache_memory
    add_route()


def add_route():
    from fastapi import Request
    from vllm.entrypoints.serve.dev.sleep import api_router

    @api_router.router.post("/release_kv_cache_memory")
    async def release(raw_request: Request):
        engine = api_router.engine_client(raw_request)
        await engine.engine_core.call_utility_async("release_kv_cache_memory")
        return {"status": "kv_cache_released"}


def release_kv_cache_memory(core):
    idle = not core.scheduler.has_requests() and not core.batch_queue
    if not (core.is_scheduler_paused() and idle):
        raise RuntimeError("release_kv_cache_memory() requires a completed pause first")
    executor = core.model_executor
    if executor.is_sleeping:
        raise RuntimeError("release_kv_cache_memory() requires all executor memory to be resident")
    core._reset_caches()
    executor.collective_rpc(unmap_kv_cache)
    executor.sleeping_tags = {"kv_cache"}
    executor.is_sleeping = True


def unmap_kv_cache(worker):
    import torch
    from vllm.device_allocator.cumem import CuMemAllocator, unmap_and_release

    torch.accelerator.synchronize()
    for data in CuMemAllocator.get_instance().pointer_to_data.values():
        if data.tag == "kv_cache" and not data.is_asleep:
            unmap_and_release(data.handle)
            data.is_asleep = True

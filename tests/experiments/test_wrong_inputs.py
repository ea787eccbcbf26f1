"""Wrong inputs of every verb: exit code 2, one line that says what is wrong, and nothing written.

ROWS is the table: a command, and words that its line must hold. Below it, every number of every verb's configuration is set to a value that
no number may have; a new key without a range fails there.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import chdir
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from experiments.capacity.run import CapacityConfig
from experiments.cli import VERBS, dispatch
from experiments.lib import usage
from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.lib.paths import ROOT
from experiments.lib.simulation import SimulateConfig
from experiments.planning.run import PlanConfig
from experiments.sweeps.run import SweepConfig
from experiments.verbs.adaptation import AdaptationConfig
from experiments.verbs.check import CheckConfig
from experiments.verbs.compare import CompareConfig
from experiments.verbs.costs.fit_hardware import FitHardwareConfig
from experiments.verbs.costs.import_profile import ImportProfileConfig
from experiments.verbs.costs.profile import ProfileConfig
from experiments.verbs.costs.published import PublishedConfig
from experiments.verbs.longbench import LongBenchConfig
from experiments.verbs.pd_proxy import PdProxyConfig
from experiments.verbs.quality import QualityConfig
from experiments.verbs.replay import ReplayConfig
from experiments.verbs.reproduce import ReproduceConfig
from experiments.verbs.serve import ServeConfig
from experiments.verbs.study import StudyConfig
from experiments.verbs.train_probe import TrainProbeConfig
from experiments.verbs.validate import ValidateConfig
from experiments.verbs.vllm_demo import VllmDemoConfig

LINE = '{"timestamp": %s, "input_length": %s, "output_length": %s, "hash_ids": %s}\n'
FILES = {  # name -> content of a file that a row reads, as FILES/name
    "empty.jsonl": "",
    "text.jsonl": "{oops\n",
    "zero.jsonl": LINE % (0, 0, 5, "[]"),
    "all_zero.jsonl": LINE % (0, 0, 5, "[]") + LINE % (1, 0, 0, "[]"),
    "half.jsonl": LINE % (0, 2.5, 5, "[]"),
    "long.jsonl": LINE % (0, 10**12, 5, "[]"),
    "late.jsonl": LINE % (9000, 5, 5, "[]") + LINE % (0, 5, 5, "[]"),
    "nan.jsonl": LINE % ("NaN", 5, 5, "[]"),
    "hashes.jsonl": LINE % (0, 2000, 5, "[1]"),
    "word.jsonl": LINE % (0, 2000, 5, '"abc"'),
    "unit.jsonl": LINE % (0, 5, 5, "[]") + LINE % (5, 5, 5, "[]") + LINE % (10, 5, 5, "[]"),
    "keys.jsonl": '{"a": 1}\n',
    "wide.jsonl": json.dumps({f"key_{i}": "x" * 30 for i in range(90)}) + "\n",
    "quoted.jsonl": LINE % (0, json.dumps("9" * 2700 + "x"), 5, "[]"),
    "array.json": "[1, 2]",
    "cut.json": '[{"timestamp": 0',
    "sharegpt.json": '[{"id": "a", "conversations": [{"from": "human", "value": "hi"}]}]',
    "vidur.csv": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,5,x\n",
    "header.csv": "a,b\n1,2\n",
    "lengths.csv": "num_prefill_tokens,num_decode_tokens\n5,6\n",
    "profile.json": "{}",
    "broken.json": "{",
    "sizes.txt": "10 0\nmany 100\n",
    "drive.csv": "app,file\nx,y\n",
    "key": "short",
}
TRACE = "simulate workload.path=FILES/{}"

# (command, words of its line). FILES stands for the folder of the files above.
ROWS: list[tuple[str, str]] = [
    # the command line itself
    ("simulat", "did you mean simulate?"),
    ("simulate faster", "cannot read 'faster'"),
    ("simulate --fast", "unknown option --fast"),
    ("simulate seed=[1", "cannot read 'seed=[1'"),
    ("simulate bitrate=embeded", "did you mean embedded?"),
    ("simulate routng=random", "did you mean routing?"),
    ("simulate network.gpbs=3", "did you mean gbps?"),
    ("simulate seed.x=3", "seed is a single value"),
    ("simulate +network.latency_s=3", "network.latency_s is not a key"),
    ("simulate bitrate=raw,int4", "add -m"),
    ("simulate bitrate=raw bitrate=int4", "bitrate is given twice, as bitrate=raw and bitrate=int4"),
    ("simulate seed=1 seed=2", "seed is given twice"),
    ("simulate -m seed=1,2 seed=3,4", "seed is given twice"),
    ("study bitrate@bitrates.raw=int4 bitrate@bitrates.raw=int8", "bitrate@bitrates.raw is given twice"),
    ("simulate -m seed=range(0,0)", "gives no value"),
    ("sweep seed=range(0,0)", "gives no value"),
    ("simulate --config-dir FILES/none", "--config-dir needs a folder"),
    ("simulate cluster=5", "cluster=5 is not known"),
    ("simulate workload=azure", "workload.path must be given"),
    ("simulate ~seed", "'seed' not found"),
    # the folder for the results
    ("simulate out=/proc/foo", "/proc"),
    ("simulate out=FILES/key", "is a file"),
    ("simulate out=FILES/key/inside", "is a file"),
    ("sweep seed=0,1 out=/proc/foo", "/proc"),
    ("simulate -m seed=0,1 out=FILES/key", "is a file"),
    ("study out=/proc/foo", "/proc"),
    ("simulate out=FILES", "give another out=DIR"),
    # simulate: numbers
    ("simulate seed=-1", "seed is -1; it must be at least 0"),
    ("simulate seed=1.5", "seed is 1.5; a whole number is needed"),
    ("simulate seed=x", "seed is 'x'; a whole number is needed"),
    ("simulate seed=9223372036854775808", "below 2^63"),
    ("simulate slo.ttft_s=-1", "slo.ttft_s is -1; it must be above 0"),
    ("simulate slo.tpot_s=0", "slo.tpot_s is 0; it must be above 0"),
    ("simulate slo.ttft_s=nan", "slo.ttft_s is nan; it must be above 0"),
    ("simulate hardware.usd_per_hour=-3", "hardware.usd_per_hour is -3; it must be at least 0"),
    ("simulate hardware.usd_per_hour=.inf", "hardware.usd_per_hour is inf"),
    ("simulate hardware.flops=0", "hardware.flops is 0; it must be above 0"),
    ("simulate hardware.gpus=0", "hardware.gpus is 0"),
    ("simulate hardware.gpus=two", "hardware.gpus is 'two'; a whole number is needed"),
    ("simulate hardware.compute_efficiency=1.5", "hardware.compute_efficiency is 1.5; it must be above 0 and at most 1"),
    ("simulate hardware.memory_efficiency=nan", "hardware.memory_efficiency is nan"),
    ("simulate hardware.overhead_s=-1", "hardware.overhead_s is -1"),
    ("simulate hardware.kernels.gemm.bfloat16.launch_s=-1", "hardware.kernels.gemm.bfloat16.launch_s is -1"),
    ("simulate hardware=profile hardware.profile=FILES/none", "none does not exist"),
    ("simulate hardware=profile hardware.profile=FILES/profile.json hardware.kv_tokens=0", "hardware.kv_tokens is 0"),
    ("simulate model.layers=0", "model.layers is 0; it must be 1 to 2^31"),
    ("simulate model.layers=three", "model.layers is 'three'; a whole number is needed"),
    ("simulate model.dtype=int3", "dtype int3 is not one of"),
    ("simulate model.parameters=-1", "model.parameters is -1"),
    ("simulate cluster.prefill=-1", "cluster.prefill is -1; it must be 0 to 100,000"),
    ("simulate cluster.prefill=two", "cluster.prefill is 'two'; a whole number is needed"),
    ("simulate cluster.decode=1000000000", "cluster.decode is 1000000000"),
    ("simulate cluster.max_batch=0", "cluster.max_batch is 0"),
    ("simulate network.gbps=0", "network.gbps is 0; it must be"),
    ("simulate network.gbps=1e-12", "network.gbps is 1e-12; it must be"),
    ("simulate network.gbps=-5", "network.gbps is -5"),
    ("simulate network.gbps=fast", "network.gbps is 'fast'; a number is needed"),
    ("simulate network.gbps=nan", "network.gbps is nan"),
    ("simulate network.gbps=1e9", "network.gbps is 1000000000.0"),
    ("simulate network.delay_s=-1", "network.delay_s is -1"),
    ("simulate network.delay_s=60", "network.delay_s is 60; it must be at least 0 and below 60"),
    ("simulate network.loss=1", "network.loss is 1"),
    ("simulate network.egress_usd_per_gb=-1", "network.egress_usd_per_gb is -1"),
    ("simulate network.senders=0", "network.senders is 0; it must be 1 to 200"),
    ("simulate network.share=5", "network.share is 5; a list such as [1,2] is needed"),
    ("simulate network.share=[-1]", "network.share has -1"),
    ("simulate network.share=[1,1]", "one rate per start"),
    ("simulate network.share=[]", "one rate per start"),
    ("simulate network.starts_s=[1]", "first start of 0 s"),
    ("simulate network.period_s=0", "network.period_s is 0"),
    ("simulate network=wan_5g network.path=FILES/none", "none does not exist"),
    ("simulate network=wan_5g network.path=FILES/drive.csv", "lacks the column"),
    ("simulate network=wan_5g network.path=FILES/drive.csv network.floor=0", "network.floor is 0"),
    ("simulate engine.hash_tokens=-1", "engine.hash_tokens is -1"),
    ("simulate engine.hash_tokens=16", "a hash of this trace stands for 512 tokens"),
    ("simulate engine.reuse_distortion=-1", "engine.reuse_distortion is -1"),
    ("simulate engine.buckets=[0]", "engine.buckets has 0"),
    ("simulate engine.chunked=perhaps", "engine.chunked is 'perhaps'; true or false is needed"),
    ("simulate engine=chunked engine.prefill_tokens=8", "chunks need more than max_batch"),
    ("simulate transport.layer_groups=99", "transport.layer_groups is 99; model llama-3.1-8b has 32 layers"),
    ("simulate transport.layer_groups=0", "transport.layer_groups is 0"),
    ("simulate transport.layout=round", "transport.layout is 'round'; it must be block_contiguous, block_wise or layer_wise"),
    ("simulate transport.fragmentation=2", "transport.fragmentation is 2; it must be 0 to 1"),
    ("simulate transport.frame_loss=1", "transport.frame_loss is 1"),
    ("simulate transport.timeout_s=0", "transport.timeout_s is 0"),
    ("simulate faults.retries=-1", "faults.retries is -1"),
    ("simulate faults.timeout_s=nan", "faults.timeout_s is nan"),
    ("simulate 'faults.deaths=[{node: decode-0, at_s: -1}]'", "faults.deaths.0.at_s is -1"),
    ("simulate 'faults.deaths=[{node: decode-99, at_s: 1}]'", "decode-99"),
    ("simulate 'faults.stragglers=[{node: decode-0, at_s: 1, factor: 0}]'", "faults.stragglers.0.factor is 0"),
    ("simulate 'link_faults=[{link: decode-0, start_s: 5, end_s: 4}]'", "it must end after it starts"),
    ("simulate 'link_faults=[{link: decode-0, start_s: 1, end_s: 4, share: 1}]'", "link_faults.0.share is 1"),
    ("simulate 'link_faults=[{link: nowhere, start_s: 1, end_s: 4}]'", "no link nowhere"),
    ("simulate +background=data_centre background.path=FILES/none", "cannot be read"),
    ("simulate +background=data_centre background.path=FILES/sizes.txt", "line 2"),
    ("simulate +background=data_centre background.path=FILES/sizes.txt background.load=0", "background.load is 0"),
    ("simulate +background=data_centre background.path=FILES/sizes.txt background.burst=-1", "background.burst is -1"),
    ("simulate rebuild_s=-1", "rebuild_s is -1"),
    ("simulate progress=maybe", "progress is 'maybe'; true or false is needed"),
    ("simulate curves=FILES/none", "none"),
    ("simulate curves=FILES/broken.json", "broken.json"),
    # simulate: policies
    ("simulate bitrate=int4 bitrate.bits=3", "bitrate.bits is 3; one of 2, 4, 8 must be given"),
    ("simulate bitrate=int4 bitrate.bits=four", "bitrate.bits is 'four'; a whole number is needed"),
    ("simulate bitrate=int4 +bitrate.coder=huffman", "bitrate.coder is 'huffman'; it must be fixed or entropy"),
    ("simulate bitrate=allocated bitrate.bits=9", "bitrate.bits is 9; it must be 0 to 8"),
    ("simulate bitrate=allocated bitrate.order=best", "bitrate.order is 'best'"),
    ("simulate bitrate.target_distortion=-1", "bitrate.target_distortion is -1"),
    ("simulate bitrate.target_distortion=null", "bitrate.target_distortion is None; a number is needed"),
    ("simulate bitrate.mean_distortion=1", "none may be above the next"),
    ("simulate bitrate.refine_distortion=nan", "bitrate.refine_distortion is nan"),
    ("simulate bitrate.link.low_quantile=2", "bitrate.link.low_quantile is 2; it must be 0 to 1"),
    ("simulate bitrate.link.stale_s=0", "bitrate.link.stale_s is 0"),
    ("simulate bitrate.link=5", "bitrate.link is 5"),
    ("simulate bitrate._target_=abkt.policy.none.None", "cannot be found"),
    ("simulate bitrate._target_=os.system", "cannot be found"),
    ("simulate bitrate=cachegen bitrate.bits=[2,4]", "bitrate.bits is [2, 4]"),
    ("simulate bitrate=cachegen bitrate.chunk_bytes=0", "bitrate.chunk_bytes is 0"),
    ("simulate bitrate=kvserve bitrate.eta=2", "bitrate.eta is 2; it must be 0 to 1"),
    ("simulate bitrate=random bitrate.bits=[]", "bitrate.bits is []"),
    ("simulate bitrate=state_machine bitrate.sample_s=0", "bitrate.sample_s is 0"),
    ("simulate bitrate=int4_off bitrate.inner.bits=5", "bitrate.inner.bits is 5"),
    ("simulate routing.top_k=0", "routing.top_k is 0"),
    ("simulate routing=prefix_aware routing.cache_threshold=0", "routing.cache_threshold is 0"),
    ("simulate roles=load_aware roles.leave_ratio=9", "leave_ratio <= enter_ratio must hold"),
    ("simulate roles=arrow roles.period_s=0", "roles.period_s is 0"),
    ("simulate roles=conditional roles.local_tokens=-1", "roles.local_tokens is -1"),
    ("simulate roles=scheduled 'roles.changes=[{at_s: -1, worker: decode-0, role: prefill}]'", "roles.changes.at_s is -1"),
    ("simulate roles=scheduled 'roles.changes=[{at_s: 1, worker: decode-0, role: both}]'", "role is 'both'"),
    ("simulate admission=ladder admission.slo_factor=0", "admission.slo_factor is 0"),
    ("simulate admission=reserve admission.max_wait_s=-1", "admission.max_wait_s is -1"),
    # simulate: workloads
    ("simulate workload.scaling.requests=99999999", "workload.scaling.requests is 99,999,999, and the trace has 12,031"),
    ("simulate workload.scaling.requests=0", "workload.scaling.requests is 0"),
    ("simulate workload.scaling.skip=-1", "workload.scaling.skip is -1"),
    ("simulate workload.scaling.skip=20000", "no request is left: the trace has 12,031"),
    ("simulate workload.scaling.skip=12000 workload.scaling.requests=100", "the trace has 31 after the first 12,000"),
    ("simulate workload.scaling.speedup=0", "workload.scaling.speedup is 0"),
    ("simulate workload.scaling.isl_scale=.inf", "workload.scaling.isl_scale is inf"),
    ("simulate workload.scaling.isl_min=9 workload.scaling.isl_max=8", "isl_min <= isl_max must hold"),
    ("simulate workload.rate_per_s=-1", "workload.rate_per_s is -1"),
    ("simulate workload.concurrency=-1", "workload.concurrency is -1"),
    ("simulate workload.format=mooncaek", "it must be one of auto, mooncake"),
    ("simulate workload.format=azure", "a table is needed"),
    ("simulate workload.time_unit=min", "workload.time_unit is 'min'; it must be auto, s or ms"),
    ("simulate workload.hash_block=0", "workload.hash_block is 0"),
    ("simulate workload.hash_block=16", "workload.hash_block=16 needs"),
    ("simulate workload=poisson workload.requests=0", "workload.requests is 0"),
    ("simulate workload=poisson workload.requests=1000000000000", "workload.requests is 1000000000000"),
    ("simulate workload=poisson workload.isl=0", "workload.isl is 0"),
    ("simulate workload=poisson workload.rate_per_s=0", "workload.rate_per_s is 0"),
    ("simulate workload=poisson workload.variation=-1", "workload.variation is -1"),
    ("simulate workload=gamma workload.arrivals.cv=0", "workload.arrivals.cv is 0"),
    ("simulate workload=on_off workload.arrivals.on_s=-1", "workload.arrivals.on_s is -1"),
    ("simulate workload=weibull workload.arrivals.cv=1e-9", "cv is 1e-09"),
    ("simulate workload=servegen workload.lengths=x workload.rates=y workload.share=0", "workload.share is 0"),
    ("simulate workload=servegen workload.lengths=FILES/none workload.rates=y", "none does not exist"),
    ("simulate workload=servegen workload.lengths=FILES/vidur.csv workload.rates=y", "there is no column client"),
    # traces
    (TRACE.format("none"), "none does not exist"),
    (TRACE.format("empty.jsonl"), "is empty"),
    (TRACE.format("text.jsonl"), "line 1: not JSON"),
    (TRACE.format("zero.jsonl"), "workload.skip_empty=true leaves such rows out"),
    (TRACE.format("all_zero.jsonl workload.skip_empty=true"), "all of its 2 rows are without tokens"),
    (TRACE.format("half.jsonl"), "line 1: input_length is 2.5; a length must be a whole number"),
    (TRACE.format("long.jsonl"), "a length must be at most 100,000,000 tokens"),
    (TRACE.format("late.jsonl"), "line 2: its time is before"),
    (TRACE.format("nan.jsonl"), "line 1: timestamp is nan"),
    (TRACE.format("hashes.jsonl engine=paged"), "give workload.hash_block=TOKENS"),
    (TRACE.format("hashes.jsonl workload.hash_block=512"), "line 1: 1 hash_ids for 2,000 tokens"),
    (TRACE.format("word.jsonl"), "line 1: hash_ids is 'abc'"),
    (TRACE.format("unit.jsonl"), "give workload.time_unit=s or workload.time_unit=ms"),
    (TRACE.format("keys.jsonl"), "the keys a are no trace's"),
    (TRACE.format("wide.jsonl"), "key_7 and 82 more are no trace's"),
    (TRACE.format("quoted.jsonl"), "a length must be a whole number"),
    (TRACE.format("array.json"), "entry 1: 1 is not a JSON object"),
    (TRACE.format("cut.json"), "line 1: not a JSON array"),
    (TRACE.format("sharegpt.json"), "holds conversations as text"),
    (TRACE.format("vidur.csv"), "line 2: num_decode_tokens is 'x'"),
    (TRACE.format("header.csv"), "the columns a, b are no trace's"),
    (TRACE.format("lengths.csv"), "workload.rate_per_s=RATE"),
    # study
    ("study profile=FILES/none", "profile: profile FILES/none does not exist"),
    ("study profile=FILES/profile.json", "schema version is None"),
    ("study max_distortion=-1", "max_distortion is -1; it must be above 0"),
    ("study seed=-1", "seed is -1"),
    ("study network.gbps=-1", "network.gbps is -1"),
    ("study slo.ttft_s=-1", "slo.ttft_s is -1"),
    ("study model_folder=FILES", "config.json"),
    ("study workload.scaling.requests=-4", "workload.scaling.requests is -4"),
    ("study workload.path=FILES/none", "does not exist"),
    ("study bitrates.int4.bits=5", "bitrates.int4.bits is 5"),
    ("study scaleout.workers=0", "scaleout.workers is 0"),
    ("study scaleout.cluster.prefill=-1", "scaleout.cluster.prefill is -1"),
    ("study scaleout.hardware.usd_per_hour=-1", "scaleout.hardware.usd_per_hour is -1"),
    ("study scaleout.routings.load_aware.top_k=0", "scaleout.routings.load_aware.top_k is 0"),
    ("study scaleout.network.gbps=0", "scaleout.network.gbps is 0"),
    ("study workload.concurrency=4", "only `abkt simulate` and `abkt replay` run a closed loop"),
    # the other verbs that run workers
    ("profile seed=-1", "seed is -1"),
    ("profile model_folder=FILES/none", "none"),
    ("replay prefill=0", "prefill is 0; it must be 1 to 1,000"),
    ("replay prefill=x", "prefill is 'x'; a whole number is needed"),
    ("replay decode=0", "decode is 0"),
    ("replay max_batch=-1", "max_batch is -1"),
    ("replay pool_tokens=8", "pool_tokens is 8; it must be at least 16"),
    ("replay layer_groups=0", "layer_groups is 0"),
    ("replay layer_groups=99", "layer_groups is 99; model"),
    ("replay rebuild_s=-1", "rebuild_s is -1"),
    ("replay transport=pigeon", "transport is 'pigeon'; it must be one of tcp, unix, shm"),
    ("replay pacing=slow", "pacing is slow"),
    ("replay paced=FILES/none", "paced: profile FILES/none does not exist"),
    ("replay profile=FILES/broken.json", "profile FILES/broken.json cannot be read"),
    ("replay calibration=FILES/none", "FILES/none does not exist"),
    ("replay 'changes=[{at_s: -1, worker: d1, role: prefill}]'", "changes.0.at_s is -1"),
    ("replay slo.ttft_s=0", "slo.ttft_s is 0"),
    ("replay seed=-3", "seed is -3"),
    ("serve port=70000", "port is 70000; it must be 0 to 65,535"),
    ("serve port=http", "port is 'http'; a whole number is needed"),
    ("serve max_waiting=0", "max_waiting is 0"),
    ("serve prefill=0", "prefill is 0"),
    ("serve pool_tokens=1", "pool_tokens is 1"),
    ("serve host=0.0.0.0", "clients need a key"),
    ("serve host=nowhere", "must be an IP address or localhost"),
    ("serve key_file=FILES/none", "cannot be read"),
    ("serve network.gbps=-1", "network.gbps is -1"),
    ("serve bitrate.link.horizon_s=0", "bitrate.link.horizon_s is 0"),
    ("serve profile=FILES/none", "does not exist"),
    ("adaptation bits=[99]", "bits has 99; it must be above 0 and at most 8"),
    ("adaptation bits=[]", "bits is empty"),
    ("adaptation bits=2", "bits is 2; a list such as [1,2] is needed"),
    ("adaptation repeats=0", "repeats is 0"),
    ("adaptation slo_factor=0.5", "slo_factor is 0.5"),
    ("adaptation target=2", "target is 2"),
    ("adaptation refine=-1", "refine is -1"),
    ("adaptation tpot_s=0", "tpot_s is 0"),
    ("adaptation receivers=0", "receivers is 0"),
    ("adaptation receivers=2 world=real", "more than 1 needs world=simulated"),
    ("adaptation world=dream", "world is 'dream'; it must be simulated or real"),
    ("adaptation profile=FILES/none", "does not exist"),
    ("adaptation workload.scaling.requests=null", "workload.scaling.requests must be a number"),
    ("adaptation workload.scaling.skip=12000", "the trace has 31 after the first 12,000"),
    ("validate requests=0", "requests is 0"),
    ("validate repeats=-1", "repeats is -1"),
    ("validate max_distortion=0", "max_distortion is 0"),
    ("validate targets.e2e=-1", "targets.e2e is -1"),
    ("validate device=tpu", "device is tpu"),
    ("validate profile=FILES/none", "does not exist"),
    ("validate prefill=0", "prefill is 0"),
    ("validate conditions.thin.speedup=0", "conditions.thin.speedup is 0"),
    # quality, longbench and the rest
    ("quality samples=0", "samples is 0"),
    ("quality tokens=5", "tokens is 5; it must be 64"),
    ("quality tile_tokens=0", "tile_tokens is 0"),
    ("quality seed=-1", "seed is -1"),
    ("quality calibration=FILES/none", "FILES/none does not exist"),
    ("quality codecs=ours", "codecs is 'ours'; a list such as [1,2] is needed"),
    ("quality model_folder=FILES/none", "none"),
    ("longbench data=FILES samples=0", "samples is 0"),
    ("longbench data=FILES max_tokens=1", "max_tokens is 1; it must be at least 64"),
    ("longbench data=FILES transfer_s=0", "transfer_s is 0"),
    ("longbench data=FILES tile_tokens=-1", "tile_tokens is -1"),
    ("longbench data=FILES coder=zip", "coder is 'zip'; it must be fixed, entropy or klt"),
    ("longbench data=FILES network.delay_s=1", "choose a network without delay and loss"),
    ("longbench data=FILES calibration=FILES/none", "a file is needed"),
    ("longbench", "data must be given"),
    ("compare", "a must be given"),
    ("compare FILES", "b must be given"),
    ("compare FILES FILES", "is not a folder of results"),
    ("compare FILES/none FILES/none", "none"),
    ("reproduce", "paper must be given"),
    ("reproduce flowkw", "paper is flowkw"),
    ("reproduce flowkv parts=[all,nothing]", "no part nothing"),
    ("reproduce flowkv layers=0", "layers is 0"),
    ("reproduce flowkv tokens=[0]", "tokens has 0"),
    ("reproduce flowkv repeats=0", "repeats is 0"),
    ("reproduce flowkv workers=0", "workers is 0"),
    ("reproduce flowkv transports=[pigeon]", "transport pigeon is unknown"),
    ("reproduce abkt profile=FILES/none", "does not exist"),
    ("bench", "kernels, transfer or sim"),
    ("bench foo", "there is no bench foo: kernels, transfer or sim"),
    ("bench kernels device=tpu", "one of cpu, cuda"),
    ("bench kernels repeats=0", "repeats is 0"),
    ("bench kernels depths=9", "depths has 9"),
    ("bench kernels tokens=x", "whole number"),
    ("bench kernels colour=red", "argument colour=red is unknown"),
    ("bench sim requests=0", "requests is 0"),
    ("bench sim nodes=1", "nodes is 1; it must be 2 to 100,000"),
    ("bench sim few=many", "whole number"),
    ("fit-hardware data=FILES", "is not a folder of kernel tables"),
    ("fit-hardware data=FILES gpus=h100", "gpus is 'h100'; a list such as [a,b] is needed"),
    ("published data=FILES", "measured_serving_h100.csv.gz"),
    ("published data=FILES sampled=-1", "sampled is -1"),
    ("import-profile tables=FILES/none", "none"),
    ("import-profile tables=FILES/broken.json kind=samples", "broken.json"),
    ("import-profile tables=FILES kind=vidur", "kind"),
    ("import-profile tables=FILES hardware.gpus=0", "hardware.gpus is 0"),
    ("pd-proxy port=70000", "port is 70,000"),
    ("pd-proxy prefill=[http://127.0.0.1:1] decode=[http://127.0.0.1:2] host=0.0.0.0", "allow_open=true"),
    ("pd-proxy host=nowhere", "must be an IP address"),
    ("pd-proxy", "prefill"),
    ("vllm-demo requests=0", "requests is 0"),
    ("vllm-demo tokens=0", "tokens is 0"),
    ("vllm-demo kv_bitrate=int5", "must be one of"),
    ("train-probe corpus=FILES/none", "is not a folder"),
    ("train-probe corpus=FILES vocabulary=5", "vocabulary is 5"),
    ("train-probe corpus=FILES recipe.minutes=-1", "recipe.minutes is -1"),
    ("train-probe corpus=FILES recipe.threads=0", "recipe.threads is 0"),
    ("capacity requests=0", "requests is 0"),
    ("capacity repeats=1", "repeats is 1; it must be 2 to 100"),
    ("capacity tolerance=nan", "tolerance is nan"),
    ("capacity goal_share=2", "goal_share is 2"),
    ("capacity max_distortion=-1", "max_distortion is -1"),
    ("capacity policies=[raw,raw]", "give each policy once"),
    ("capacity policies=[rew]", "rew"),
    ("capacity pool=cloud", "pool=cloud is not known"),
    ("capacity slo.ttft_s=-1", "slo.ttft_s is -1"),
    ("plan gpus=[]", "give at least one"),
    ("plan gpus=[h900]", "h900"),
    ("plan usd_per_hour='{h100: -1}'", "a price must be finite and not negative"),
    ("plan max_gpus=0", "max_gpus is 0"),
    ("plan rate_per_s=-1", "rate_per_s is -1"),
    ("plan workers=0", "workers is 0"),
    ("plan network.gbps=0", "network.gbps is 0"),
    ("check tokens=5", "tokens is 5; it must be 64"),
    ("check seed=-1", "seed is -1"),
    ("check model_folder=FILES/none", "none"),
    # sweep: the axes, and every point
    ("sweep", "the sweep has no axis"),
    ("sweep seed=0,-1", "seed is -1"),
    ("sweep network.gbps=1,0", "network.gbps is 0"),
    ("sweep bitrate=raw,rew", "bitrate=rew is not known"),
    ("sweep seed=0,1 seed=2,3", "seed is given twice"),
    ("sweep seed=0,1 workers=0", "workers is 0"),
    ("sweep seed=0,1 slo.ttft_s=-1", "slo.ttft_s is -1"),
    ("sweep experiment=none", "experiment=none is not known"),
    ("sweep routing.top_k=1,0", "routing.top_k is 0"),
]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        (folder / name).write_text(content)
    (folder / "zipped.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-4])
    return folder


def words_of(command: str, files: Path) -> list[str]:
    """The words of a command; quotes keep one together."""
    import shlex

    return [word.replace("FILES", str(files)) for word in shlex.split(command)]


def refusal(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command in an empty folder, with an out folder that does not exist. Returns its line, after checks of all but its words."""
    here, out = folder / "here", folder / "out"
    here.mkdir()
    verb, *rest = arguments
    with chdir(here):
        named = any(word.startswith("out=") for word in rest) or arguments == ["bench"]
        code = dispatch(arguments if named else [verb, *rest, f"out={out}"])
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.err.startswith("abkt: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert "plan:" not in said.out
    assert len(said.err) < 1000
    assert not list(here.iterdir())
    assert not out.exists()
    return said.err


# A row takes a sixth of a second, for Hydra composes the verb's configuration. So every second row is left to the slow tests.
@pytest.mark.parametrize(
    ("command", "words"),
    [pytest.param(*row, id=row[0], marks=[pytest.mark.slow] if i % 2 else []) for i, row in enumerate(ROWS)],
)
def test_a_wrong_input_is_one_line(command: str, words: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(words_of(command, files), tmp_path, capsys)
    assert words.replace("FILES", str(files)) in line


def test_the_table_is_long_enough_and_names_every_verb() -> None:
    assert len(ROWS) == len({command for command, _ in ROWS}) >= 150
    assert {command.split()[0] for command, _ in ROWS} >= set(VERBS)


@pytest.mark.parametrize("command", ["simulate slo.ttft_s=-1", "study profile=FILES/none", "bench foo", "sweep seed=range(0,0)"])
def test_a_wrong_input_is_one_line_in_a_process_of_its_own(command: str, files: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *words_of(command, files)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("abkt: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(__import__("torch").cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", ["bench kernels device=cuda", "bench transfer device=cuda", "validate device=cuda compute=paced"])
def test_a_missing_gpu_is_one_line(command: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no GPU that PyTorch can use" in refusal(words_of(command, files), tmp_path, capsys)


# Every number of every configuration ------------------------------------------------------------------------------------------

CONFIGS: dict[str, Any] = {
    "study": StudyConfig,
    "profile": ProfileConfig,
    "simulate": SimulateConfig,
    "sweep": SweepConfig,
    "capacity": CapacityConfig,
    "plan": PlanConfig,
    "check": CheckConfig,
    "replay": ReplayConfig,
    "serve": ServeConfig,
    "adaptation": AdaptationConfig,
    "compare": CompareConfig,
    "validate": ValidateConfig,
    "reproduce": ReproduceConfig,
    "quality": QualityConfig,
    "longbench": LongBenchConfig,
    "fit-hardware": FitHardwareConfig,
    "published": PublishedConfig,
    "train-probe": TrainProbeConfig,
    "import-profile": ImportProfileConfig,
    "pd-proxy": PdProxyConfig,
    "vllm-demo": VllmDemoConfig,
}
OTHERS = {"bench"}  # verbs whose arguments Hydra does not read; their rows are in the table
REQUIRED = {"reproduce": ["paper=flowkv"], "fit-hardware": ["data=FILES", "gpus=[]"], "train-probe": ["corpus=FILES"]}
# Values that no number may have, whatever its range. There are no exceptions: a number that may be anything has no meaning.
IMPOSSIBLE = (-1e30, math.nan, -(10**30))
EXCEPTIONS: set[tuple[str, str]] = set()  # (verb, key), with a reason beside each


def leaves(values: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(place, value) of each number, and of each null, which may stand for a number."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from leaves(value, (*place, key))
    elif values is None or (isinstance(values, int | float) and not isinstance(values, bool)):
        yield place, values


def with_value(values: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    node: Any = changed
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return changed


def configurations(verb: str, files: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, plain values) of a verb's configuration. Of `simulate` also with each choice of each group: all verbs share them."""
    own = [word.replace("FILES", str(files)) for word in REQUIRED.get(verb, [])]
    given = {word.partition("=")[0] for word in own}
    path = ROOT / "conf" / f"{verb.replace('-', '_')}.yaml"
    own += [f"{key}=x" for key, value, _ in usage.keys(path) if value == "???" and key not in given]
    sets = [own]
    if verb == "simulate":
        for group in usage.groups(verb):
            sets += [[*own, f"{group}={choice}", *needed(group, choice, files)] for choice in usage.choices(group)]
        sets.append([*own, "+background=data_centre", "background.path=x"])
    for overrides in sets:
        plain = compose(verb, overrides).config
        yield " ".join((verb, *overrides)), {**plain, "out": str(files / "out")}


def needed(group: str, choice: str, files: Path) -> list[str]:
    keys = usage.keys(ROOT / "conf" / group / f"{choice}.yaml")
    return [f"{group}.{key}={files / 'x'}" for key, value, _ in keys if value == "???"]


@pytest.mark.parametrize("verb", CONFIGS)
def test_every_number_has_a_range(verb: str, files: Path) -> None:
    check_numbers(verb, islice(configurations(verb, files), 1))


@pytest.mark.slow
def test_every_number_of_every_choice_has_a_range(files: Path) -> None:
    check_numbers("simulate", configurations("simulate", files))


def check_numbers(verb: str, of: Iterable[tuple[str, dict[str, Any]]]) -> None:
    kind, seen, missing = CONFIGS[verb], set(), []
    names = {field.name for field in fields(kind)}
    for name, values in of:
        read(kind, values)  # as it is, it is right
        for place, value in leaves({key: value for key, value in values.items() if key in names}):
            key = ".".join(map(str, place))
            owner = values
            for part in place[:-1]:
                owner = owner[part]
            at = (key, str(owner.get("_target_")) if isinstance(owner, dict) else "", value is None)
            if at in seen or (verb, key) in EXCEPTIONS:
                continue
            seen.add(at)
            for impossible in IMPOSSIBLE:
                try:
                    read(kind, with_value(values, place, impossible))
                except ValueError as error:
                    if str(place[-1]) not in str(error) and not isinstance(place[-1], int):
                        missing.append(f"{name}: {key}={impossible} is refused without its name: {error}")
                else:
                    missing.append(f"{name}: {key}={impossible} is not refused")
    assert not missing, "\n" + "\n".join(missing)
    assert len(seen) > 0 or verb in ("compare", "fit-hardware")


def test_every_verb_is_checked() -> None:
    assert CONFIGS.keys() | OTHERS == set(VERBS)

"""occ_node: cameras and LiDAR in, semantic occupancy out, over ROS 2.

The node only wires the parts together: inputs (subscriptions and synchroniser), work (frames, network, messages in one
worker thread), outputs (publishers), diagnostics; and maps lifecycle transitions onto them.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from fusionocc_core.process import arrange_process
from fusionocc_ros import declared
from fusionocc_ros.assemble import Assembler, Needs
from fusionocc_ros.causes import CAUSES
from fusionocc_ros.dds import use_shipped_profile
from fusionocc_ros.diagnostics import (
    CLOCK_STANDS_AFTER_S,
    SILENT_AFTER_S,
    Report,
    Statistics,
    Throttle,
    WorkCounters,
    report_to_message,
    silent_sensors,
)
from fusionocc_ros.ego_motion import Source
from fusionocc_ros.engine import NO_ENGINE, Engine, load_engine, needs_of
from fusionocc_ros.inputs import Inputs
from fusionocc_ros.live import changed
from fusionocc_ros.operation import Operation, memory_mib
from fusionocc_ros.parameters import NodeParameters
from fusionocc_ros.publishers import Outputs
from fusionocc_ros.rig import load_rig
from fusionocc_ros.ros_log import RosHandler
from fusionocc_ros.shared_memory import remove_dead_segments
from fusionocc_ros.spinning import make_executor, spin
from fusionocc_ros.sync import SensorSet, SyncCounters
from fusionocc_ros.work import Work

EngineFactory = Callable[[NodeParameters], Engine]

NAME = "fusionocc"
LOG_PERIOD_S = 5.0
"""Between two lines in the log about the same kind of trouble."""
CLOSE_TIMEOUT_S = 4.0
"""How long the end of the process waits for the network; `ros2 launch` kills after five seconds."""


class OccNode(LifecycleNode):
    """Semantic occupancy from cameras and LiDAR.

    Args:
        engine_factory: makes the network from the parameters, at configuration.
        on_set: takes the synchroniser's sets in the place of the network; for measuring what lies before it.
        node_arguments: handed to rclpy (context, namespace, parameter_overrides, cli_args ...).

    Raises:
        rclpy.exceptions.ParameterException: a parameter has the wrong type or lies outside its range.
    """

    def __init__(
        self,
        *,
        engine_factory: EngineFactory = load_engine,
        on_set: Callable[[SensorSet[Any]], None] | None = None,
        **node_arguments: Any,
    ) -> None:
        super().__init__(NAME, **node_arguments)
        self._engine_factory = engine_factory
        self._on_set = on_set
        self._throttle = Throttle(LOG_PERIOD_S)
        self.statistics = Statistics()
        self.inputs: Inputs | None = None
        self.work: Work | None = None
        self._assembler: Assembler | None = None
        self._outputs: Outputs | None = None
        self._operation: Operation | None = None
        self._settings: NodeParameters | None = None
        self._engine: Engine | None = None
        self._diagnostics: Any = None
        self._timer: Any = None
        self._reported: tuple[float, SyncCounters, WorkCounters] = (0.0, SyncCounters(), WorkCounters())
        self._extra: dict[str, int] = {}
        self._state = "unconfigured"
        self._active_since = 0.0
        self._clock_said = False
        declared.declare(self)
        for name, nearest in declared.unknown_names(self).items():
            hint = f"; did you mean {nearest}?" if nearest else ""
            self.get_logger().warning(f"parameter {name} is set but not known{hint}")
        self.add_on_set_parameters_callback(self._take_change)

    @property
    def autostart(self) -> bool:
        """Whether the node is to start by itself."""
        return bool(self.get_parameter("autostart").value)

    def start(self) -> bool:
        """Configure and activate, as a lifecycle manager would; False (and an error in the log) where it fails."""
        success = TransitionCallbackReturn.SUCCESS
        try:
            return self.trigger_configure() == success and self.trigger_activate() == success
        except RuntimeError:
            if self.context.ok():
                raise
            return False  # an interrupt has taken the context away under the transition

    # ---- lifecycle ---------------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters, load the network, follow calibration and transforms."""
        try:
            self._configure(declared.read(self))
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            if self.context.ok():
                self.get_logger().error(f"cannot configure: {error}")
            self._take_down()
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().error(f"cannot configure:\n{traceback.format_exc()}")
            raise
        self._state = "inactive"
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Follow the sensors and publish."""
        assert self.inputs is not None
        result = super().on_activate(state)
        if self.work is not None:
            self.work.start()
        try:
            self.inputs.start()
        except Exception:
            self.get_logger().error(f"cannot activate:\n{traceback.format_exc()}")
            raise
        self._state, self._active_since = "active", time.monotonic()
        self.get_logger().info("active")
        if self._operation is not None:
            self._operation.activate(self.statistics.snapshot().published)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Leave the sensors alone and publish nothing."""
        assert self.inputs is not None
        self.inputs.stop()
        if self.work is not None:
            self.work.pause()
        if self._outputs is not None:
            self._outputs.clear()
        self._state = "inactive"
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of everything."""
        result = super().on_cleanup(state)
        self._take_down()
        self._state = "unconfigured"
        return result

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of everything, for good."""
        result = super().on_shutdown(state)
        self._take_down()
        self._state = "finalized"
        return result

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of everything after a transition that raised; the node can be configured again."""
        self._take_down()
        self._state = "unconfigured"
        return super().on_error(state)

    def close(self) -> bool:
        """Let go of everything, without a transition; False where the network is still at work after some seconds."""
        return self._take_down()

    def _configure(self, parameters: NodeParameters) -> None:
        parameters.check_installed()
        rig = load_rig(parameters.rig_file) if parameters.rig_file else None
        needs = Needs()
        if self._on_set is None:
            self._engine = self._engine_factory(parameters)
            needs = needs_of(self._engine, parameters)
        self.inputs = Inputs(
            self,
            parameters,
            on_set=self._on_set or self._take,
            on_bad_message=self._warn,
            needs=needs,
            is_busy=lambda: self.work is not None and self.work.in_hand > 0,
        )
        if rig is not None:
            self.inputs.use_rig(rig)
        if self._engine is not None:
            self._outputs = Outputs(self, parameters, self._warn)
            self._assembler = Assembler(
                parameters,
                self.inputs.infos,
                self.inputs.transforms,
                self.inputs.motion,
                rig,
                needs=needs,
                on_left_out=lambda sensor, cause, text: self._warn(f"{sensor} left out: {cause}", text),
            )
            self.work = Work(
                parameters,
                engine=self._engine,
                assembler=self._assembler,
                outputs=self._outputs,
                statistics=self.statistics,
                on_drop=self._warn,
                on_source=self._say_source,
            )
            self._operation = Operation(
                self, parameters, inputs=self.inputs, outputs=self._outputs, forget=self.work.forget
            )
        self._settings = parameters
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = self.create_timer(
            parameters.diagnostics_period, self._diagnose, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._reported = (time.monotonic(), copy.deepcopy(self.inputs.sync.counters), self.statistics.snapshot())
        if self._engine is not None:
            self.get_logger().info(
                f"{self._engine.model} ({self._engine.trained_on}) on {self._engine.device}, "
                f"{len(parameters.camera_names)} cameras"
            )

    def _take_change(self, changes: list[Any]) -> SetParametersResult:
        """Parameters that are not live are read at configuration: a later change would be accepted and do nothing."""
        if self._settings is not None:
            try:
                self._settings = changed(self._settings, [(change.name, change.value) for change in changes])
            except ValueError as error:
                return SetParametersResult(successful=False, reason=str(error))
            if self._outputs is not None:
                self._outputs.configure(self._settings)
        return SetParametersResult(successful=True)

    def _take_down(self) -> bool:
        ended = True
        if self.inputs is not None:
            self.inputs.close()
        if self.work is not None:
            ended = self.work.close(CLOSE_TIMEOUT_S)
        if self._operation is not None:
            self._operation.close()
        if self._outputs is not None:
            self._outputs.close()
        if self._timer is not None:
            self.destroy_timer(self._timer)
        if self._diagnostics is not None:
            self.destroy_publisher(self._diagnostics)
        self.inputs = self.work = self._outputs = self._assembler = self._engine = None
        self._operation = self._settings = None
        self._timer = self._diagnostics = None
        return ended

    # ---- work --------------------------------------------------------------------------------------------------------

    def _take(self, sensors: SensorSet[Any]) -> None:
        if self.work is not None:
            self.work.offer(sensors)

    def _warn(self, kind: str, message: str) -> None:
        text = self._throttle(kind, message)
        if text is None:
            return
        dropped = f"frame dropped ({kind}): " if kind in CAUSES else f"{kind}: " if " left out: " in kind else ""
        self.get_logger().warning(f"{dropped}{text}")

    def _say_source(self, source: Source) -> None:
        if source is Source.NONE:
            self.get_logger().warning(
                "ego motion is not known (no /tf from base_frame to fixed_frame, no odometry): pictures and sweep are "
                "treated as taken from one place, and no earlier keyframes are used"
            )
        else:
            self.get_logger().info(f"ego motion comes from {source.name.lower()}")

    def _diagnose(self) -> None:
        if self.inputs is None or self._diagnostics is None:
            return
        now, sync, work = time.monotonic(), copy.deepcopy(self.inputs.sync.counters), self.statistics.snapshot()
        then, sync_before, work_before = self._reported
        extra = dict(self._assembler.counters) if self._assembler else {}
        self._reported, extra_before, self._extra = (now, sync, work), self._extra, extra
        silence_s = self.inputs.silence_s()
        clock, reasons = self._find_silence(now, silence_s)
        engine = self._engine or NO_ENGINE
        report = Report(
            node=self.get_fully_qualified_name().lstrip("/"),
            stamp_ns=self.get_clock().now().nanoseconds,
            period_s=max(now - then, 1e-3),
            state=self._state,
            model=engine.model,
            trained_on=engine.trained_on,
            device=engine.device,
            model_hash=engine.model_hash,
            memory_mib=memory_mib(),
            sent=dict(self._outputs.sent) if self._outputs else {},
            failed=dict(self._outputs.failed) if self._outputs else {},
            sync=sync,
            sync_before=sync_before,
            work=work,
            work_before=work_before,
            in_hand=self.inputs.sync.pending + (self.work.in_hand if self.work else 0),
            silence_s=silence_s,
            silence_reasons=reasons,
            clock_problem=clock,
            extra=extra,
            extra_before=extra_before,
        )
        self._diagnostics.publish(report_to_message(report))
        if self._operation is not None and self._state == "active":
            self._operation.look(work.published)

    def _find_silence(self, now: float, silence_s: dict[str, float]) -> tuple[str, dict[str, str]]:
        """What is wrong with /clock, or else with each sensor that is silent; says so in the log."""
        if self.inputs is None or self._state != "active" or now - self._active_since <= SILENT_AFTER_S:
            return "", {}
        said, self._clock_said = self._clock_said, self.inputs.clock_stands_s() > CLOCK_STANDS_AFTER_S
        if self._clock_said:
            problem = self.inputs.explain_clock()
            if not said:
                self.get_logger().warning(problem)
            return problem, {}
        reasons = {name: self.inputs.explain_silence(name) for name in silent_sensors(silence_s)}
        if reasons:
            self._warn("silence", "; ".join(f"nothing from {name}: {reason}" for name, reason in reasons.items()))
        return "", reasons


def main(args: list[str] | None = None, *, engine_factory: EngineFactory = load_engine) -> int:
    """Run the node until it is interrupted; the exit code is 0 after an interrupt, 1 where it could not start.

    Args:
        args: of the command line; None takes those of the process.
        engine_factory: as for OccNode; for tests, which have no time for a network.
    """
    arrange_process()
    profile, (removed, size) = use_shipped_profile(), remove_dead_segments()
    try:
        rclpy.init(args=args)
    except RuntimeError as error:  # arguments that ROS does not know
        sys.stderr.write(f"occ_node: error: {error}\n")
        return 2
    node: OccNode | None = None
    ended = True
    try:
        node = OccNode(engine_factory=engine_factory)
        logging.getLogger("fusionocc_ros").addHandler(RosHandler(node))
        node.get_logger().debug(f"Fast DDS profile: {profile or 'of the environment'}")
        if removed:
            node.get_logger().info(f"removed shared memory of {removed} crashed processes ({size >> 20} MiB)")
        if node.autostart and not node.start():
            return 1 if rclpy.ok() else 0  # interrupted while the network was loaded
        executor = make_executor()
        executor.add_node(node)
        spin(executor, rclpy.ok, node._warn)
    except (ParameterException, ValueError) as error:
        sys.stderr.write(f"occ_node: error: {error}\n")
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:  # RCLError: an interrupt has taken the context away under the executor
        if rclpy.ok():
            raise
    finally:
        if node is not None:
            ended = node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    if not ended:
        # The network cannot be interrupted, and the interpreter would wait for it or crash under it.
        sys.stderr.flush()
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())

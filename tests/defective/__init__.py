"""A user's own --user-dir by which the control loop, in the driver, is wrong from update 10 on."""

import sys

if (membership := sys.modules.get("fairseq_ray_plugin.control.membership")) is not None:
    grows = membership.grows

    def wrong(step):
        return 1 // 0 if step.state.update >= 10 else grows(step)

    membership.grows = wrong

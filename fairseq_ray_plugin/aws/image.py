"""The image that nodes start from: the newest with NVIDIA's driver, which AWS itself names."""

from __future__ import annotations

from fairseq_ray_plugin.aws.account import Account

NEWEST = (
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
)
"""The parameter with the id of the Deep Learning Base AMI; its user is `ubuntu`."""


def newest(account: Account) -> str:
    """Its id in this region."""
    answer = account.client("ssm").get_parameter(Name=NEWEST)
    return str(answer["Parameter"]["Value"])

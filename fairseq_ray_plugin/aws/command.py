"""`python -m fairseq_ray_plugin aws prepare|check|clean`: says what it would do, then does it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fairseq_ray_plugin.aws import cluster_file, network
from fairseq_ray_plugin.aws.account import Account, AwsError, explained
from fairseq_ray_plugin.aws.pieces import Standing
from fairseq_ray_plugin.aws.plan import Plan, Wish

TEMPLATE = "examples/roberta/lm-cluster.yaml"


def main(arguments: Sequence[str]) -> int:
    """The verb has been carried out, or it has been said what it would do.

    Returns:
        The exit code; 1: something is missing (`check`), 2: an error.
    """
    args = _parser().parse_args(arguments)
    try:
        with explained():
            wish = Wish(
                name=args.name,
                file=cluster_file.read(args.cluster_file),
                bucket=args.bucket,
                ssh_from=_ssh_from(args.ssh_from),
            )
            plan = Plan(Account(args.region), wish)
            if args.verb == "prepare":
                return prepare(plan, wish, args.output, args.yes)
            if args.verb == "check":
                return check(plan, wish)
            return clean(plan, args.yes, args.data)
    except AwsError as error:
        print(f"fairseq_ray_plugin aws {args.verb}: {error}", file=sys.stderr)
        return 2


def prepare(plan: Plan, wish: Wish, output: str, yes: bool) -> int:
    """With `yes` all pieces are there, and the cluster file; without, nothing has changed."""
    standings = plan.look()
    _print_standings(standings)
    print(f"image: {plan.image}")
    _print_circumstances(plan, wish)
    if not yes:
        print("Nothing was changed. With --yes, what is to be made is made.")
        return 0
    for piece, standing in zip(plan.pieces, standings, strict=True):
        if standing.missing:
            print(f"making {standing.what} ...", flush=True)
            piece.make()
    if cluster_file.write(output, wish.file.filled(plan.values(plan.look()))):
        print(f"{output} has been written. Next: ray up {output}")
    else:
        print(f"{output} is there and stays as it is; move it away for a new one")
    return 0


def check(plan: Plan, wish: Wish) -> int:
    """It has been said what is there; 1: not all is."""
    standings = plan.look()
    _print_standings(standings)
    has_room = _print_circumstances(plan, wish)
    return int(not has_room or any(standing.missing for standing in standings))


def clean(plan: Plan, yes: bool, data: bool) -> int:
    """With `yes`, what was made here is gone; the file system or bucket only with `data`."""
    plan.refuse_while_nodes_run()
    is_needed = False  # by what stays
    for piece in reversed(plan.pieces):
        standing = piece.look()
        if not standing.ours:
            continue
        if piece is plan.storage and not data:
            print(f"{standing.what}: stays, with what is in it (--data removes it, too)")
            is_needed = plan.storage_is_in_group
        elif piece is plan.group and is_needed:
            print(f"{standing.what}: stays: the file system is in it")
        elif yes:
            piece.remove()
            print(f"{standing.what}: removed: {standing.id}")
        else:
            print(f"{standing.what}: to be removed: {standing.id}")
    if not yes:
        print("Nothing was changed. With --yes, what is to be removed is removed.")
    return 0


def _print_standings(standings: Sequence[Standing]) -> None:
    for standing in standings:
        there = f"there: {standing.id}" if standing.id else "not there"
        missing = f"; to be made: {', '.join(standing.missing)}" if standing.missing else ""
        print(f"{standing.what}: {there}{missing}")


def _print_circumstances(plan: Plan, wish: Wish) -> bool:
    """What nobody here can make, quotas and prices; returns whether the quotas are enough."""
    quotas = plan.quotas()
    for quota in quotas:
        print(f"quota {quota}")
        if quota.is_short:
            print(
                f"  too little: ask for {quota.needed} with aws service-quotas "
                f"request-service-quota-increase --service-code ec2 --quota-code {quota.code} "
                f"--desired-value {quota.needed}, or lower max_workers in the cluster file"
            )
    if plan.prices:
        cheapest = plan.prices[0]
        num_workers = wish.file.most_workers
        print(f"spot now, dollars an hour: {'; '.join(map(str, plan.prices[:4]))}")
        print(
            f"  {num_workers} workers of the cheapest: {num_workers * cheapest.dollars:.2f} "
            f"dollars an hour. Not in it: the head ({wish.file.head.instance_type}, on demand), "
            "workers on demand where there is no spot, disks, the file system or bucket, traffic"
        )
    return not any(quota.is_short for quota in quotas)


def _ssh_from(given: str | None) -> str:
    return network.address_of_caller() if given is None else network.network_of(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_ray_plugin aws",
        description="What ray up needs in an AWS account: a security group, a file system or "
        "bucket, roles. Nothing is changed without --yes.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="prepare|check|clean")
    for verb, purpose in (
        ("prepare", "make what is missing, and write the file for ray up"),
        ("check", "say what is there and what is missing (then the exit code is 1)"),
        ("clean", "remove what was made"),
    ):
        sub = verbs.add_parser(verb, help=purpose, description=purpose)
        sub.add_argument("--region", required=True, help="as in us-west-2")
        sub.add_argument("--name", default="fairseq-ray", help="of the cluster (%(default)s)")
        sub.add_argument("--bucket", help="this S3 bucket instead of a file system")
        sub.add_argument(
            "--cluster-file",
            default=TEMPLATE,
            metavar="FILE",
            help="with placeholders; says which machines, and how many (%(default)s)",
        )
        sub.add_argument(
            "--ssh-from", metavar="ADDRESS", help="who may log in (this machine's address)"
        )
        if verb != "check":
            sub.add_argument("--yes", action="store_true", help="do it")
    verbs.choices["prepare"].add_argument(
        "--output", default="lm-cluster.yaml", metavar="FILE", help="(%(default)s)"
    )
    verbs.choices["clean"].add_argument(
        "--data", action="store_true", help="the file system, or the empty bucket, too: for good"
    )
    return parser

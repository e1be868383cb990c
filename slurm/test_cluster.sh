#!/usr/bin/env bash
# A real Slurm of two nodes on this machine, from Debian's packages, for tests. Needs root; leaves the machine's own Slurm
# and munge alone.
#
#   slurm/test_cluster.sh run COMMAND …   installs, starts, runs the command with SLURM_CONF set, stops, also on failure
#   slurm/test_cluster.sh install         the packages, where they are missing
#   slurm/test_cluster.sh start           prints its folder; then: export SLURM_CONF=FOLDER/slurm.conf
#   slurm/test_cluster.sh stop FOLDER     stops what was started and removes the folder
set -euo pipefail

SECONDS_TO_START=60

fail() {
    echo "test_cluster.sh: $*" >&2
    exit 1
}

install() {
    [[ $EUID -eq 0 ]] || fail "a Slurm of one's own takes root: run this as root, in a container for example"
    if ! hash slurmctld slurmd munged sbatch pgrep 2>/dev/null; then # unlike command -v, where all are there
        command -v apt-get >/dev/null || fail "slurmctld is missing and installed on Debian only: install Slurm, munge and procps"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update >&2
        apt-get install --yes --no-install-recommends slurm-wlm munge procps >&2
    fi
}

configure() {
    local folder=$1 host port
    host=$(hostname -s)
    port=$((10000 + $$ % 3000 * 3)) # three in a row, below those that the system hands out
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
SlurmctldPort=$port
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=10
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=4 RealMemory=64000
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=4 RealMemory=64000
PartitionName=test Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
}

start() {
    local folder=$1
    configure "$folder"
    export SLURM_CONF=$folder/slurm.conf
    mkdir "$folder/state"
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" >&2
    slurmctld -f "$SLURM_CONF" >&2
    slurmd -f "$SLURM_CONF" -N n1 >&2
    slurmd -f "$SLURM_CONF" -N n2 >&2
    local until=$((SECONDS + SECONDS_TO_START))
    while [[ $(sinfo --noheader --format=%D --states=idle 2>/dev/null) -ne 2 ]]; do
        if ((SECONDS > until)); then
            tail -n 20 "$folder"/*.log >&2
            fail "two idle nodes were expected after $SECONDS_TO_START s"
        fi
        sleep 0.2
    done
}

stop() {
    local folder=$1 file pid
    [[ -f $folder/slurm.conf ]] || fail "there is no cluster in $folder"
    export SLURM_CONF=$folder/slurm.conf
    if scancel --user="$(id -un)" 2>/dev/null; then
        for _ in {1..200}; do # until the processes of jobs have gone
            [[ -n $(squeue --noheader 2>/dev/null) ]] || break
            sleep 0.1
        done
    fi
    for file in "$folder"/{slurmd.n1,slurmd.n2,slurmctld,munged}.pid; do
        [[ -f $file ]] || continue
        pid=$(<"$file")
        kill "$pid" 2>/dev/null || continue
        for _ in {1..100}; do
            kill -0 "$pid" 2>/dev/null || continue 2
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -rf "$folder"
}

case ${1:-} in
    install) install ;;
    start)
        install
        folder=$(mktemp -d)
        start "$folder"
        echo "$folder"
        ;;
    stop) stop "${2:?name the folder that start has printed}" ;;
    run)
        shift
        install
        folder=$(mktemp -d)
        trap 'stop "$folder"' EXIT
        trap 'exit 130' INT TERM
        start "$folder"
        "$@"
        ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit 1 ;;
esac

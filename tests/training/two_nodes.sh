#!/bin/bash
# Runs a command with `accelerate launch` on two machines: this network namespace and a second one, with addresses of
# their own and nothing but a cable between them.
#     unshare -rn bash two_nodes.sh CONFIG_FILE SCRIPT ARGUMENTS …
# Prints what went over the cable at the end ("cable: BYTES").
set -e
ip link set lo up
unshare --net sleep 300 &
other=$!
trap 'kill $other' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add cable0 type veth peer name cable1 netns $other
ip addr add 10.77.0.1/24 dev cable0
ip link set cable0 up
nsenter -t $other -n sh -c 'ip link set lo up; ip addr add 10.77.0.2/24 dev cable1; ip link set cable1 up'
config=$1
shift
node() { # its number, its cable, prefix of the command
    GLOO_SOCKET_IFNAME=$2 $3 $PYTHON -m accelerate.commands.launch --config_file "$config" --num_machines 2 \
        --num_processes 2 --machine_rank $1 --main_process_ip 10.77.0.1 --main_process_port 29571 "${@:4}"
}
node 1 cable1 "nsenter -t $other -n" "$@" &
second=$!
node 0 cable0 "" "$@"
wait $second
echo "cable: $(ip -s link show cable0 | awk '/TX:/ {getline; print $1}')"

"""A server that says it is well and what it serves, but infers nothing: `python tests/service/tiny_teacher.py PORT [MODEL]`."""

import sys
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc


class TinyTeacher(service_pb2_grpc.GRPCInferenceServiceServicer):
    """With the standard health service, or without it where `health_service` is False; then ServerReady says `ready`."""

    def __init__(self, port=0, model="toy", health_service=True, credentials=None):
        self.model, self.ready = model, True
        self.server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.health = health.HealthServicer()
        if health_service:
            health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        self.set_serving(True)
        address = f"127.0.0.1:{port}"
        add = self.server.add_secure_port if credentials else self.server.add_insecure_port
        self.endpoint = f"127.0.0.1:{add(address, *[credentials][: bool(credentials)])}"
        self.server.start()

    def set_serving(self, serving):
        status = health_pb2.HealthCheckResponse
        self.ready = serving
        self.health.set("", status.SERVING if serving else status.NOT_SERVING)

    def ServerReady(self, request, context):
        return pb.ServerReadyResponse(ready=self.ready)

    def RepositoryIndex(self, request, context):
        answer = pb.RepositoryIndexResponse()
        answer.models.add(name=self.model, version="1", state="READY")
        return answer

    def ModelMetadata(self, request, context):
        answer = pb.ModelMetadataResponse(name=self.model, versions=["1"])
        answer.inputs.add(name="x", datatype="FP32", shape=[-1, 3, -1, -1])
        answer.outputs.add(name="logits", datatype="FP16", shape=[-1, 2, -1, -1])
        return answer

    def close(self):
        self.server.stop(None).wait(5)


if __name__ == "__main__":
    teacher = TinyTeacher(int(sys.argv[1]), *sys.argv[2:3])
    print("serving", teacher.endpoint, flush=True)
    teacher.server.wait_for_termination()

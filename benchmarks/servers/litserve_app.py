"""LitServe, batching on. Arguments: MODEL PORT."""

import sys

import litserve
import numpy as np
import xgboost


class Api(litserve.LitAPI):
    def setup(self, device):
        self.booster = xgboost.Booster({"nthread": 1}, model_file=sys.argv[1])

    def decode_request(self, request):
        return request["row"]

    def batch(self, inputs):
        return np.array(inputs, np.float32)

    def predict(self, batch):
        return self.booster.inplace_predict(batch)

    def unbatch(self, output):
        return output.tolist()

    def encode_response(self, output):
        return {"prediction": output}


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=64, batch_timeout=0.002), accelerator="cpu", workers_per_device=1
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="warning",
        generate_client_file=False,
        num_api_servers=1,
    )

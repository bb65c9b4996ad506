// What clients call of CUDA's runtime, declared and not defined: for a compiler's checks alone.
#pragma once
#include <cstddef>

typedef struct CUstream_st* cudaStream_t;
enum cudaError { cudaSuccess = 0 };
typedef enum cudaError cudaError_t;
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaMalloc(void** place, size_t bytes);
cudaError_t cudaFree(void* place);
cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);

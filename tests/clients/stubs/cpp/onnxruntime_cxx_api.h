// What clients call of ONNX Runtime's C++ interface, declared and not defined: for a compiler's checks alone.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtDeviceAllocator = 0, OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10 };
struct OrtAllocator;
struct OrtMemoryInfo;

namespace Ort {
struct Env { Env(OrtLoggingLevel level, const char* name); };
struct SessionOptions { SessionOptions(); };
struct RunOptions { explicit RunOptions(std::nullptr_t); };
struct AllocatorWithDefaultOptions { AllocatorWithDefaultOptions(); operator OrtAllocator*(); };
struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType allocator, OrtMemType type);
  operator const OrtMemoryInfo*() const;
};
struct TensorTypeAndShapeInfo {
  ONNXTensorElementDataType GetElementType() const;
  size_t GetElementCount() const;
  std::vector<int64_t> GetShape() const;
};
struct ConstTensorTypeAndShapeInfo : TensorTypeAndShapeInfo {};
struct TypeInfo { ConstTensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const; };
struct Value {
  Value(Value&&);
  Value(const Value&) = delete;
  static Value CreateTensor(const OrtMemoryInfo* memory, void* data, size_t bytes, const int64_t* shape, size_t axes,
                            ONNXTensorElementDataType type);
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
  const void* GetTensorRawData() const;
};
struct FreeName { void operator()(char* name) const; };
using AllocatedStringPtr = std::unique_ptr<char, FreeName>;
struct Session {
  Session(const Env& env, const char* path, const SessionOptions& options);
  size_t GetInputCount() const;
  size_t GetOutputCount() const;
  AllocatedStringPtr GetInputNameAllocated(size_t index, OrtAllocator* allocator) const;
  AllocatedStringPtr GetOutputNameAllocated(size_t index, OrtAllocator* allocator) const;
  TypeInfo GetInputTypeInfo(size_t index) const;
  std::vector<Value> Run(const RunOptions& options, const char* const* input_names, const Value* inputs,
                         size_t input_count, const char* const* output_names, size_t output_count);
};
}  // namespace Ort
